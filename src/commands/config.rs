//! `skiserver config`: says what is wrong with a configuration, or what it amounts to.

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
#[expect(clippy::print_stdout, reason = "commands print")]
pub fn run(args: Args) -> ExitCode {
    let (Args::Check { file } | Args::Show { file }) = &args;
    let config = match Config::load(file) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("skiserver: {error}");
            return ExitCode::FAILURE;
        }
    };
    match args {
        Args::Check { .. } => match Identity::load(&config, &Clock::default()) {
            Ok(_) => {
                println!("{}: ok, domain {}", file.display(), config.domain);
                ExitCode::SUCCESS
            }
            Err(problem) => {
                eprintln!("skiserver: {problem}");
                ExitCode::FAILURE
            }
        },
        Args::Show { .. } => match toml::to_string_pretty(&config) {
            Ok(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("skiserver: {error}");
                ExitCode::FAILURE
            }
        },
    }
}
