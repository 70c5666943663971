//! `skiserver invite`: makes an invitation with which a friend of a user registers.

use super::{complain, say};
use std::{path::PathBuf, process::ExitCode, time::Duration};

use crate::config::Config;

/// Arguments of `skiserver invite`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration of the running node.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// The user id of the inviter.
    #[arg(long, value_name = "USER")]
    from: String,
}

/// Prints the code.
pub async fn run(args: Args) -> ExitCode {
    match ask(&args).await {
        Ok(code) => {
            say(code);
            ExitCode::SUCCESS
        }
        Err(reason) => {
            complain(reason);
            ExitCode::FAILURE
        }
    }
}

async fn ask(args: &Args) -> Result<String, String> {
    let config = Config::load(&args.config).map_err(|error| error.to_string())?;
    let client = reqwest::Client::builder()
        .timeout(Duration::from_secs(5))
        .no_proxy()
        .build();
    let request = client
        .map_err(|error| error.to_string())?
        .post(format!("http://{}/invitations", config.doors.admin))
        .json(&serde_json::json!({ "from": args.from }));
    let answer = request
        .send()
        .await
        .map_err(|error| format!("the node does not answer: {error}"))?;
    if !answer.status().is_success() {
        return Err(answer.text().await.unwrap_or_default());
    }
    let reply: serde_json::Value = answer.json().await.map_err(|error| error.to_string())?;
    reply
        .get("code")
        .and_then(serde_json::Value::as_str)
        .map(str::to_owned)
        .ok_or_else(|| "the node sent no code".to_owned())
}
