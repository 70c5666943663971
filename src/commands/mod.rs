//! The command line: one file a command, and the only place that prints.

pub mod certs;
pub mod config;
pub mod health;
pub mod invite;
pub mod lab;
pub mod serve;

use std::{
    fmt,
    io::{self, Write as _},
};

/// Prints a line. Nobody is left to tell when standard output is closed, so that is no failure.
pub(crate) fn say(text: impl fmt::Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Prints a line that is about a failure.
pub(crate) fn complain(text: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "skiserver: {text}");
}
