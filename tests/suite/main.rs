//! The test suite: one binary, one module for each subject.
#![allow(
    clippy::default_trait_access,
    clippy::duration_suboptimal_units,
    clippy::large_futures,
    clippy::result_large_err,
    clippy::semicolon_if_nothing_returned,
    clippy::too_many_lines,
    clippy::unnecessary_wraps,
    reason = "tables of cases are long, and futures of tests live on the stack of one test"
)]

#[cfg(test)]
mod accounts;
#[cfg(test)]
mod certificates;
#[cfg(test)]
mod config_files;
#[cfg(test)]
mod contract_tables;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod devices;
#[cfg(test)]
mod discovery;
#[cfg(test)]
mod doors;
#[cfg(test)]
mod federation;
#[cfg(test)]
mod keys;
#[cfg(test)]
mod lab;
#[cfg(test)]
mod messages;
#[cfg(test)]
mod outbox;
#[cfg(test)]
mod peer_door;
#[cfg(test)]
mod processes;
#[cfg(test)]
mod sessions;
#[cfg(test)]
mod streams;
