//! `skiserver serve`: runs a node until SIGTERM or interrupt; SIGHUP reads certificates and policy again.

use super::complain;
use std::{path::PathBuf, process::ExitCode};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::{
    config::Config,
    server::{self, Running, StartOptions},
    telemetry,
};

/// Arguments of `skiserver serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Drain when standard input ends: for a parent that must not leave nodes behind.
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

/// Runs the node.
pub async fn run(args: Args) -> ExitCode {
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(error) => {
            complain(error);
            return ExitCode::from(2);
        }
    };
    telemetry::init(&config.log);
    let running = match server::start(config, StartOptions::default()).await {
        Ok(running) => running,
        Err(error) => {
            let cause = std::error::Error::source(&error)
                .map(ToString::to_string)
                .unwrap_or_default();
            complain(format!("the node can't start: {error} {cause}"));
            return ExitCode::FAILURE;
        }
    };
    tracing::info!(domain = running.node.home.name(), client = %running.client, peer = %running.peer,
        admin = %running.admin, "ready");
    match wait(&running, &args).await {
        Ok(()) => {
            tracing::info!("draining");
            running.stop().await;
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(format!("signals can't be heard: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Returns when the node shall end.
async fn wait(running: &Running, args: &Args) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut parent = args.until_stdin_closes.then(stdin_closes);
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            // A terminal sends its interrupt to the whole lab; the lab's pipe then says when to end.
            _ = interrupt.recv(), if !args.until_stdin_closes => return Ok(()),
            () = parent_ends(&mut parent) => return Ok(()),
            _ = hang_up.recv() => match Config::load(&args.config) {
                Ok(config) => {
                    let changed = running.reload(Some(&config));
                    tracing::info!(changed, "reloaded");
                }
                Err(error) => tracing::error!(%error, "the configuration can't be used; nothing was reloaded"),
            },
        }
    }
}

/// Returns when the parent lets go of our standard input; never, if nobody asked for that.
async fn parent_ends(parent: &mut Option<oneshot::Receiver<()>>) {
    match parent {
        Some(told) => drop(told.await),
        None => std::future::pending().await,
    }
}

/// A thread of its own, which nobody waits for: a read of standard input can't be called off, and a runtime
/// would wait for it.
fn stdin_closes() -> oneshot::Receiver<()> {
    let (closed, told) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        let _ = closed.send(());
    });
    told
}
