//! The program as a person starts it: `skiserver lab` and `skiserver serve` as processes of their own. What is
//! left of them at the end of a test is killed.

use std::{
    io::{BufRead as _, BufReader, Read},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

use skiserver::lab::manifest::Manifest;
use tokio::sync::mpsc;

use super::{PATIENCE, refusals::within};

/// Short waits, and patience for slow machines; the nodes of a lab inherit it.
const SUITS_TESTS: [(&str, &str); 3] = [
    ("SKISERVER__LIMITS__STREAM_SETTLE_MS", "5"),
    ("SKISERVER__LIMITS__TRANSACTION_MS", "5000"),
    ("SKISERVER__LIMITS__HANDSHAKE_MS", "15000"),
];

/// A running process of the program.
pub(crate) struct Program {
    child: Child,
    /// What it says, on both of its outputs.
    lines: mpsc::UnboundedReceiver<String>,
}

impl Program {
    /// Starts `skiserver lab` for these domains in `dir`, and answers what its `lab.json` says once it is there.
    pub(crate) async fn lab(domains: &str, dir: &Path) -> (Self, Manifest) {
        let mut lab = Self::start(|program| {
            program
                .args(["lab", "--domains", domains, "--dir"])
                .arg(dir);
        });
        lab.says("lab.json").await;
        (lab, Manifest::load(&Manifest::file(dir)).unwrap())
    }

    /// Starts `skiserver serve`, and returns once it takes calls.
    pub(crate) async fn serve(config: &Path) -> Self {
        let mut node = Self::start(|program| {
            program.args(["serve", "--config"]).arg(config);
        });
        node.says("ready").await;
        node
    }

    fn start(arguments: impl FnOnce(&mut Command)) -> Self {
        let mut program = Command::new(env!("CARGO_BIN_EXE_skiserver"));
        arguments(&mut program);
        program.envs(SUITS_TESTS);
        let pipes = program.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = pipes.stderr(Stdio::piped()).spawn().unwrap();
        let (said, lines) = mpsc::unbounded_channel();
        read(child.stdout.take().unwrap(), said.clone());
        read(child.stderr.take().unwrap(), said);
        Self { child, lines }
    }

    /// The next line that it says with these words in it.
    pub(crate) async fn says(&mut self, words: &str) -> String {
        let mut before = Vec::new();
        let find = async {
            while let Some(line) = self.lines.recv().await {
                if line.contains(words) {
                    return line;
                }
                before.push(line);
            }
            panic!("it ended without a word of {words:?}: {before:#?}");
        };
        within(PATIENCE, words, find).await
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: &str) {
        send_signal(self.child.id(), signal);
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let silent = async { while self.lines.recv().await.is_some() {} };
        within(PATIENCE, "the end of a process", silent).await;
        self.child.wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // A lab's nodes end with its pipe.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A thread of its own, because a pipe that nobody reads stops who writes into it.
fn read(output: impl Read + Send + 'static, said: mpsc::UnboundedSender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = said.send(line);
        }
    });
}

/// Sends a signal to a process that a lab started; the shell's own command, because it is everywhere.
pub(crate) fn send_signal(pid: u32, signal: &str) {
    let sent = kill(pid, signal);
    assert!(sent.success(), "{signal} to {pid}: {sent}");
}

/// Whether a process is there.
pub(crate) fn is_alive(pid: u32) -> bool {
    kill(pid, "0").success()
}

fn kill(pid: u32, signal: &str) -> ExitStatus {
    let mut shell = Command::new("sh");
    let script = r#"kill -"$0" "$1" 2>/dev/null"#;
    shell.args(["-c", script, signal, &pid.to_string()]);
    shell.status().unwrap()
}
