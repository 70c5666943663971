//! The way in: connections, and later the services behind them.

pub mod listener;
