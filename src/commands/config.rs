//! `skiserver config`: says what is wrong with a configuration, or what it amounts to.

use super::{complain, say};
use std::{path::PathBuf, process::ExitCode};

use crate::{clock::Clock, config::Config, identity::Identity};

/// Arguments of `skiserver config`.
#[derive(Debug, clap::Subcommand)]
pub enum Args {
    /// Reads a configuration and the certificates that it names, and says what is wrong.
    Check {
        /// The configuration file.
        file: PathBuf,
    },
    /// Prints the effective configuration without secrets.
    Show {
        /// The configuration file.
        file: PathBuf,
    },
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let (Args::Check { file } | Args::Show { file }) = args;
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => {
            complain(error);
            return ExitCode::FAILURE;
        }
    };
    match args {
        Args::Check { .. } => match Identity::load(&config, &Clock::default()) {
            Ok(_) => {
                say(format!("{}: ok, domain {}", file.display(), config.domain));
                ExitCode::SUCCESS
            }
            Err(problem) => {
                complain(problem);
                ExitCode::FAILURE
            }
        },
        Args::Show { .. } => match toml::to_string_pretty(&config) {
            Ok(text) => {
                say(text.trim_end());
                ExitCode::SUCCESS
            }
            Err(error) => {
                complain(error);
                ExitCode::FAILURE
            }
        },
    }
}
