//! The node processes of a lab: started with a pipe that tells them when the lab is gone, watched, and ended.

use std::{
    fs::{File, TryLockError},
    io,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::admin::{Admin, Depth};
use crate::{
    address::Domain,
    config::Config,
    lab::{
        LabError,
        ca::{self, Authority},
        dns::DnsServer,
        files,
        manifest::{Manifest, NodeEntry},
        node::{self, Doors, NodeFolder},
        ports,
    },
};

/// How long the DNS answers of a lab live.
const TTL_SECONDS: u32 = 5;
/// What an earlier lab left behind may take this long to end.
const EARLIER: Duration = Duration::from_secs(40);
/// A node must be ready within this time.
const READY: Duration = Duration::from_secs(30);
/// How often something awaited is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// A node that drains longer than this is killed.
const DRAIN: Duration = Duration::from_secs(30);

/// One node.
struct Node {
    domain: Domain,
    folder: NodeFolder,
    doors: Doors,
    /// The process that the lab started.
    child: Option<Child>,
    /// The node's log. The lock on it lives until both the lab and the node have closed it.
    log: File,
}

/// What is seen of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sight {
    /// Whether it takes requests.
    pub(super) is_up: bool,
    /// What waits in it, if it says so.
    pub(super) depth: Option<Depth>,
}

/// All nodes, and the name server that leads them to each other.
pub(super) struct Nodes {
    list: Vec<Node>,
    dns: DnsServer,
    admin: Admin,
}

impl Nodes {
    /// Prepares folders, names and certificates below `dir`, which is absolute, and starts one process of
    /// `program` for each domain. Addresses, authority and databases of an earlier run are used again.
    pub(super) async fn start(
        dir: &Path,
        domains: &[Domain],
        program: &Path,
    ) -> Result<Self, LabError> {
        files::folder(dir)?;
        let folders: Vec<NodeFolder> = domains
            .iter()
            .map(|domain| NodeFolder::new(dir.join(domain.as_str())))
            .collect();
        let mut logs = Vec::new();
        for folder in &folders {
            files::folder(folder.path())?;
            logs.push(lock(&folder.log()).await?);
        }
        let authority = authority(dir)?;
        let (doors, dns) = addresses(&folders).await?;
        let dns = DnsServer::start(dns)
            .await
            .map_err(|error| LabError::Unusable(format!("name server at {dns}: {error}")))?;
        let mut list = Vec::new();
        for (((domain, folder), doors), log) in domains.iter().zip(folders).zip(doors).zip(logs) {
            folder.prepare(domain, &doors, dns.address(), &authority)?;
            dns.set(domain, &node::zone(domain, doors.peer, TTL_SECONDS)?)?;
            list.push(Node {
                domain: domain.clone(),
                folder,
                doors,
                child: None,
                log,
            });
        }
        let admin = Admin::new().map_err(|error| LabError::Unusable(error.to_string()))?;
        let mut nodes = Self { list, dns, admin };
        for node in &mut nodes.list {
            node.spawn(program)?;
        }
        Ok(nodes)
    }

    /// Returns once every node is ready. A node that ends before is an error that names its log.
    pub(super) async fn ready(&mut self) -> Result<(), LabError> {
        let deadline = Instant::now() + READY;
        for node in &mut self.list {
            while !self.admin.is_ready(node.doors.admin).await {
                let log = node.folder.log();
                if let Some(status) = node.ended() {
                    let (domain, log) = (&node.domain, log.display());
                    let why = format!("{domain} did not start ({status}); its log is {log}");
                    return Err(LabError::Unusable(why));
                }
                if Instant::now() > deadline {
                    let (domain, log) = (&node.domain, log.display());
                    return Err(LabError::Unusable(format!(
                        "{domain} is not ready; its log is {log}"
                    )));
                }
                sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// What the outside may know.
    pub(super) fn manifest(&self) -> Manifest {
        let domains = self
            .list
            .iter()
            .map(|node| NodeEntry {
                domain: node.domain.as_str().to_owned(),
                pid: node.child.as_ref().and_then(Child::id).unwrap_or_default(),
                client: node.doors.client,
                peer: node.doors.peer,
                admin: node.doors.admin,
                ca: node.folder.ca(),
                config: node.folder.config(),
                database: node.folder.database(),
                auth_codes: node.folder.auth_codes(),
            })
            .collect();
        Manifest {
            dns: self.dns.address(),
            domains,
        }
    }

    /// The domains, in their order.
    pub(super) fn domains(&self) -> impl Iterator<Item = &Domain> {
        self.list.iter().map(|node| &node.domain)
    }

    /// Looks at every node. One that somebody else started again is up like any other.
    pub(super) async fn look(&self) -> Vec<Sight> {
        let looks = self.list.iter().map(async |node| {
            let is_up = self.admin.is_ready(node.doors.admin).await;
            let depth = if is_up {
                self.admin.depth(node.doors.admin).await
            } else {
                None
            };
            Sight { is_up, depth }
        });
        join_all(looks).await
    }

    /// Words about processes that ended since the last call.
    pub(super) fn ends(&mut self) -> Vec<String> {
        let mut words = Vec::new();
        for node in &mut self.list {
            if let Some(status) = node.ended() {
                words.push(format!(
                    "{} ended ({status}); to start it again: skiserver serve --config {}",
                    node.domain,
                    node.folder.config().display()
                ));
                node.child = None;
            }
        }
        words
    }

    /// Closes the pipes, waits until the processes have drained, and kills what does not end, or everything
    /// once `hurry` returns. Answers in words what did not end well.
    pub(super) async fn end(&mut self, hurry: impl Future<Output = ()>) -> Vec<String> {
        let mut running: Vec<(&Domain, Child)> = Vec::new();
        for node in &mut self.list {
            if let Some(mut child) = node.child.take() {
                drop(child.stdin.take());
                running.push((&node.domain, child));
            }
        }
        let drained = join_all(running.iter_mut().map(|(_, child)| child.wait()));
        tokio::select! {
            _ = timeout(DRAIN, drained) => {}
            () = hurry => {}
        }
        let mut words = Vec::new();
        for (domain, mut child) in running {
            match child.try_wait() {
                Ok(Some(status)) if status.success() => {}
                Ok(Some(status)) => words.push(format!("{domain} ended with {status}")),
                Ok(None) | Err(_) => {
                    let _ = child.kill().await;
                    words.push(format!("{domain} did not end by itself and was killed"));
                }
            }
        }
        words
    }
}

impl Node {
    fn spawn(&mut self, program: &Path) -> Result<(), LabError> {
        let log = |file: &File| -> io::Result<Stdio> { Ok(file.try_clone()?.into()) };
        let spawn = || -> io::Result<Child> {
            Command::new(program)
                .arg("serve")
                .arg("--config")
                .arg(self.folder.config())
                .arg("--until-stdin-closes")
                .stdin(Stdio::piped())
                .stdout(log(&self.log)?)
                .stderr(log(&self.log)?)
                // Ctrl-C in the terminal is for the lab, which still has to see the last messages arrive.
                .process_group(0)
                .spawn()
        };
        self.child = Some(spawn().map_err(|error| files::failed(program, error))?);
        Ok(())
    }

    /// How its process ended, if it did.
    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok().flatten()
    }
}

/// Opens a node's log and locks it. A process of an earlier lab holds the lock until it has drained.
async fn lock(path: &Path) -> Result<File, LabError> {
    let failed = |error| files::failed(path, error);
    let file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .map_err(failed)?;
    let deadline = Instant::now() + EARLIER;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) if Instant::now() > deadline => {
                return Err(failed(io::Error::new(
                    io::ErrorKind::WouldBlock,
                    "another lab uses this folder",
                )));
            }
            Err(TryLockError::WouldBlock) => sleep(LOOK).await,
        }
    }
}

/// The authority of an earlier run, or a new one.
fn authority(dir: &Path) -> Result<Authority, LabError> {
    if ca::key_file(dir).exists() {
        return Authority::open(dir);
    }
    let authority = Authority::generate("skiserver lab")?;
    authority.save(dir)?;
    Ok(authority)
}

/// The addresses of an earlier run as far as there was one, new ones otherwise. Waits until they are free.
async fn addresses(folders: &[NodeFolder]) -> Result<(Vec<Doors>, SocketAddr), LabError> {
    let earlier: Vec<Option<(Doors, SocketAddr)>> = folders.iter().map(earlier).collect();
    let known: Vec<SocketAddr> = earlier
        .iter()
        .flatten()
        .flat_map(|(doors, dns)| [doors.client, doors.peer, doors.admin, *dns])
        .collect();
    let deadline = Instant::now() + EARLIER;
    while let Some(busy) = known.iter().find(|address| !ports::is_free(**address)) {
        if Instant::now() > deadline {
            return Err(LabError::Unusable(format!(
                "something else listens at {busy}, where an earlier run of this folder was"
            )));
        }
        sleep(LOOK).await;
    }
    let missing = earlier.iter().filter(|node| node.is_none()).count();
    let mut fresh = ports::free(missing * 3 + 1, &known)
        .map_err(|error| LabError::Unusable(format!("no free ports: {error}")))?
        .into_iter();
    let nowhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut take = || fresh.next().unwrap_or(nowhere);
    let dns = earlier
        .iter()
        .flatten()
        .map(|(_, dns)| *dns)
        .next()
        .unwrap_or_else(&mut take);
    let doors = earlier
        .into_iter()
        .map(|node| match node {
            Some((doors, _)) => doors,
            None => Doors {
                client: take(),
                peer: take(),
                admin: take(),
            },
        })
        .collect();
    Ok((doors, dns))
}

/// Where a node and its name server were in an earlier run.
fn earlier(folder: &NodeFolder) -> Option<(Doors, SocketAddr)> {
    let config = Config::load(&folder.config()).ok()?;
    let doors = Doors {
        client: config.doors.client,
        peer: config.doors.peer,
        admin: config.doors.admin,
    };
    Some((doors, *config.dns.servers.first()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Must as _;

    fn folder_in(dir: &Path, name: &str) -> NodeFolder {
        NodeFolder::new(dir.join(name))
    }

    #[tokio::test]
    async fn addresses_stay_over_runs_and_new_domains_get_others() {
        let dir = tempfile::tempdir().must();
        let folders = [
            folder_in(dir.path(), "a.test"),
            folder_in(dir.path(), "b.test"),
        ];
        let authority = authority(dir.path()).must();
        let (first, dns) = addresses(&folders[..1]).await.must();
        let domain = Domain::parse("a.test").must();
        folders[0]
            .prepare(&domain, &first[0], dns, &authority)
            .must();

        let (second, dns_again) = addresses(&folders).await.must();

        assert_eq!((second[0], dns_again), (first[0], dns));
        let all = [dns, second[0].client, second[0].peer, second[0].admin];
        for address in [second[1].client, second[1].peer, second[1].admin] {
            assert!(!all.contains(&address) && address.port() != 0);
        }
    }

    #[tokio::test]
    async fn the_authority_stays_over_runs() {
        let dir = tempfile::tempdir().must();

        let first = authority(dir.path()).must();
        let second = authority(dir.path()).must();

        assert_eq!(first.certificate_pem(), second.certificate_pem());
    }

    #[tokio::test]
    async fn a_program_that_ends_at_once_is_named_with_its_log() {
        let dir = tempfile::tempdir().must();
        let domains = [Domain::parse("a.test").must()];
        let mut nodes = Nodes::start(dir.path(), &domains, Path::new("/bin/false"))
            .await
            .must();

        let error = nodes.ready().await.unwrap_err().to_string();

        assert!(
            error.contains("a.test did not start") && error.contains("node.log"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_process_that_reads_its_pipe_ends_with_the_lab() {
        let dir = tempfile::tempdir().must();
        let script = dir.path().join("program");
        // Like a node, it ends when its standard input does. Another process writes it: a file that this one
        // has open for writing while it starts children can't be executed.
        let written = std::process::Command::new("sh")
            .args([
                "-c",
                r#"printf '#!/bin/sh\nexec cat\n' >"$0" && chmod 700 "$0""#,
            ])
            .arg(&script)
            .status();
        assert!(written.must().success());
        let domains = [
            Domain::parse("a.test").must(),
            Domain::parse("b.test").must(),
        ];
        let mut nodes = Nodes::start(&dir.path().join("lab"), &domains, &script)
            .await
            .must();
        assert!(nodes.manifest().domains.iter().all(|node| node.pid != 0));
        assert!(nodes.ends().is_empty());

        let words = nodes.end(std::future::pending()).await;

        assert_eq!(words, Vec::<String>::new());
    }
}
