//! Reads auth codes from the file that a lab's node writes them to, as a person reads a mail.

use std::{path::Path, time::Duration};

use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::ClientError;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(10);

#[derive(Deserialize)]
struct Line {
    authenticator: String,
    code: String,
}

/// How far the file reaches before a code is asked for.
pub fn end(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |file| file.len())
}

/// The newest code for `authenticator` behind `start`, as soon as it is there.
pub async fn wait(
    file: &Path,
    start: u64,
    authenticator: &str,
    patience: Duration,
) -> Result<String, ClientError> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(code) = newest(file, start, authenticator) {
            return Ok(code);
        }
        if Instant::now() > deadline {
            return Err(ClientError::Late("the auth code"));
        }
        sleep(LOOK).await;
    }
}

fn newest(file: &Path, start: u64, authenticator: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let added = text.get(usize::try_from(start).ok()?..)?;
    added
        .lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<Line>(line).ok())
        .find(|line| line.authenticator == authenticator)
        .map(|line| line.code)
}

#[cfg(test)]
mod tests {
    use crate::testing::Must as _;
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn only_a_new_line_of_that_person_counts() {
        let dir = tempfile::tempdir().must();
        let path = dir.path().join("codes");
        let line = |who: &str, code: &str| {
            format!("{{\"authenticator\":\"{who}\",\"code\":\"{code}\",\"expires_at\":1}}\n")
        };
        let mut file = std::fs::File::create(&path).must();
        file.write_all(line("a", "old").as_bytes()).must();
        let start = end(&path);

        let nothing = wait(&path, start, "a", Duration::ZERO).await;
        file.write_all(line("b", "other").as_bytes()).must();
        file.write_all(line("a", "new").as_bytes()).must();
        let code = wait(&path, start, "a", Duration::ZERO).await;

        assert!(matches!(nothing, Err(ClientError::Late(_))));
        assert_eq!(code.must(), "new");
    }
}
