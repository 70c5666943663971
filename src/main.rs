//! Arguments, then a command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use skiserver::commands;

/// One node of a federated, end-to-end-encrypted messaging network.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a node.
    Serve(commands::serve::Args),
    /// Runs a whole federation on this machine.
    Lab(commands::lab::Args),
    /// Makes and checks certificates.
    Certs(commands::certs::Args),
    /// Checks or shows a configuration.
    #[command(subcommand)]
    Config(commands::config::Args),
    /// Asks whether a node takes calls.
    Health(commands::health::Args),
    /// Makes an invitation to register.
    Invite(commands::invite::Args),
}

#[tokio::main]
async fn main() -> ExitCode {
    // Only a second installation in one process could fail, and there is none.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    match Cli::parse().command {
        Command::Serve(args) => commands::serve::run(args).await,
        Command::Lab(args) => commands::lab::run(args).await,
        Command::Certs(args) => commands::certs::run(args),
        Command::Config(args) => commands::config::run(&args),
        Command::Health(args) => commands::health::run(args).await,
        Command::Invite(args) => commands::invite::run(args).await,
    }
}
