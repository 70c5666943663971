//! `skiserver health`: asks a node's admin door whether it takes calls, for containers and scripts.

use super::{complain, say};
use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use crate::config::Config;

/// Arguments of `skiserver health`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The admin door, as `address:port`.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:7445",
        conflicts_with = "config"
    )]
    admin: SocketAddr,
    /// Take the address from this configuration.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Ends with 0 if the node is ready, with 1 if it is not.
pub async fn run(args: Args) -> ExitCode {
    let admin = match args.config.as_deref().map(Config::load) {
        None => args.admin,
        Some(Ok(config)) => config.doors.admin,
        Some(Err(error)) => {
            complain(error);
            return ExitCode::from(2);
        }
    };
    let asked = reqwest::Client::builder()
        .timeout(Duration::from_secs(5))
        .no_proxy()
        .build();
    let answer = match asked {
        Ok(client) => client.get(format!("http://{admin}/ready")).send().await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(answer) if answer.status().is_success() => {
            say("ready");
            ExitCode::SUCCESS
        }
        Ok(answer) => {
            complain(format!(
                "not ready: {}",
                answer.text().await.unwrap_or_default().trim()
            ));
            ExitCode::FAILURE
        }
        Err(error) => {
            complain(format!("{admin} does not answer: {error}"));
            ExitCode::FAILURE
        }
    }
}
