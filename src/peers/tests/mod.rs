//! What other domains and users can rely on, against a scripted wire and a real database.

mod ends;
mod notices;
mod order;
mod outages;
mod state;
mod wire;
