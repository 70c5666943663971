//! The program itself, as processes that are ended by signals: nothing that was answered is lost, and nothing is
//! left running.

use std::{fs::File, path::Path};

use futures_util::future::{join_all, try_join_all};
use skiserver::{
    client::{Device, Door, Pack, Who},
    lab::manifest::{Manifest, NodeEntry},
};
use tokio::sync::oneshot;

use crate::lab::{
    OpenStream, PATIENCE, User,
    process::{Program, is_alive, send_signal},
    refusals::within,
    stream::text_of,
};

/// Senders, each with one receiver.
const PAIRS: usize = 5;
/// Messages of each sender: together the hundred that must arrive.
const EACH: usize = 20;
/// How often the receiving process is killed.
const KILLS: usize = 4;

fn entry<'a>(manifest: &'a Manifest, domain: &str) -> &'a NodeEntry {
    manifest.node(domain).unwrap()
}

/// Registers people of a node.
async fn people(node: &NodeEntry, count: usize) -> Vec<User> {
    let door = Door::of(node).unwrap();
    let register = |n: usize| {
        let who = Who::new(&format!("user{n}"), "phone");
        let door = door.clone();
        async move { Device::register(&door, &who, Pack::SMALL).await.map(User) }
    };
    try_join_all((0..count).map(register)).await.unwrap()
}

/// Each sender's numbers, each answered with 200.
async fn send_numbers(pairs: &[(User, User)]) {
    let send = async |(from, to): &(User, User)| {
        for n in 0..EACH {
            from.send(to, &n.to_string()).await;
        }
    };
    join_all(pairs.iter().map(send)).await;
}

/// Everything that waits for somebody up to a last text. It is consumed; what the server itself says is left out.
async fn texts_to(user: &User, last: &str) -> Vec<String> {
    let mut stream: OpenStream = user.stream().await;
    let mut texts = Vec::new();
    loop {
        let message = stream.next().await;
        stream.consume(message.tag.as_ref().unwrap()).await;
        if message.from.is_none() {
            continue; // the welcome
        }
        let text = text_of(&message);
        if text == last {
            return texts;
        }
        texts.push(text);
    }
}

#[tokio::test]
async fn a_hundred_messages_outlive_the_ends_of_both_processes() {
    let folder = tempfile::tempdir().unwrap();
    let (mut lab, manifest) = Program::lab("a.test,b.test", folder.path()).await;
    let (a, b) = (entry(&manifest, "a.test"), entry(&manifest, "b.test"));
    let (senders, receivers) = tokio::join!(people(a, PAIRS), people(b, PAIRS));
    let pairs: Vec<(User, User)> = senders.into_iter().zip(receivers).collect();

    send_signal(b.pid, "TERM");
    lab.says("b.test ended (exit status: 0)").await;
    send_numbers(&pairs).await;
    send_signal(a.pid, "KILL");
    lab.says("a.test ended (signal: 9").await;
    let (mut a_again, mut b_again) =
        tokio::join!(Program::serve(&a.config), Program::serve(&b.config));

    let numbers: Vec<String> = (0..EACH).map(|n| n.to_string()).collect();
    let check = async |(from, to): &(User, User)| {
        from.send(to, "last").await;
        assert_eq!(texts_to(to, "last").await, numbers);
    };
    join_all(pairs.iter().map(check)).await;

    // And the receiving process is cut down between a message and the next.
    let (alice, bob) = &pairs[0];
    for n in 0..KILLS {
        alice.send(bob, &format!("before {n}")).await;
        b_again.signal("KILL");
        b_again.ended().await;
        alice.send(bob, &format!("after {n}")).await;
        b_again = Program::serve(&b.config).await;
        let came = texts_to(bob, &format!("after {n}")).await;
        assert_eq!(came, [format!("before {n}")]);
    }

    for node in [&mut a_again, &mut b_again] {
        node.signal("TERM");
        assert!(node.ended().await.success());
    }
    lab.signal("INT");
    assert!(lab.ended().await.success());
}

#[tokio::test]
async fn an_interrupted_lab_leaves_no_process_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (mut lab, manifest) = Program::lab("a.test,b.test", folder.path()).await;
    let alice = people(entry(&manifest, "a.test"), 1).await.remove(0);
    let _stream = alice.stream().await;
    let pids: Vec<u32> = manifest.domains.iter().map(|node| node.pid).collect();
    assert!(pids.iter().all(|pid| is_alive(*pid)));

    lab.signal("INT");
    let status = lab.ended().await;

    assert!(status.success(), "{status}");
    for (pid, node) in pids.iter().zip(&manifest.domains) {
        assert!(!is_alive(*pid), "{} still runs", node.domain);
        assert!(log(node).contains("draining"), "{}", log(node));
    }
}

#[tokio::test]
async fn the_nodes_of_a_killed_lab_drain_and_end() {
    let folder = tempfile::tempdir().unwrap();
    let (mut lab, manifest) = Program::lab("a.test,b.test", folder.path()).await;
    let alice = people(entry(&manifest, "a.test"), 1).await.remove(0);
    let mut stream = alice.stream().await;

    lab.signal("KILL");
    lab.ended().await;
    let reason = stream.ended().await;

    assert_eq!(reason.code(), tonic::Code::Unavailable, "{reason:?}");
    for node in &manifest.domains {
        unlocked(&log_file(node)).await;
        assert!(log(node).contains("draining"), "{}", log(node));
    }
}

fn log_file(node: &NodeEntry) -> std::path::PathBuf {
    node.config.with_file_name("node.log")
}

fn log(node: &NodeEntry) -> String {
    std::fs::read_to_string(log_file(node)).unwrap()
}

/// Waits until the lab and the node that write this log have both ended: until then they hold a lock on it.
async fn unlocked(log: &Path) {
    let file = File::options().append(true).open(log).unwrap();
    let (locked, wait) = oneshot::channel();
    std::thread::spawn(move || locked.send(file.lock().is_ok()));
    let what = format!("the end of the writers of {}", log.display());
    assert!(within(PATIENCE, &what, wait).await.unwrap());
}
