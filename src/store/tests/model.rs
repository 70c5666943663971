//! Random writes against a model: what the model holds is what the store holds, and every counter is true.

use crate::testing::Must as _;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::store::outbox;

const DEVICES: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    /// Texts for devices, in one batch; the second of a pair names a deduplication key.
    Send(Vec<(usize, u8, Option<u8>)>),
    /// A text for several devices and another domain.
    Share(u8, Vec<usize>),
    /// Consumes the messages at these positions, some of them twice.
    Consume(usize, Vec<usize>),
    /// Two streams received what is at these positions.
    Receive(usize, Vec<usize>),
    /// The oldest request to another domain is answered.
    Answer,
    /// The device registers again.
    Empty(usize),
    /// A transaction that is dropped.
    Forget(usize, u8),
}

fn step() -> impl Strategy<Value = Step> {
    let device = 0..DEVICES;
    let positions = || prop::collection::vec(0_usize..12, 1..6);
    let text = (0..DEVICES, 0_u8..6, prop::option::of(0_u8..20));
    prop_oneof![
        4 => prop::collection::vec(text, 1..24).prop_map(Step::Send),
        2 => (0_u8..6, prop::collection::vec(device.clone(), 1..6)).prop_map(|(t, d)| Step::Share(t, d)),
        4 => (device.clone(), positions()).prop_map(|(d, p)| Step::Consume(d, p)),
        2 => (device.clone(), positions()).prop_map(|(d, p)| Step::Receive(d, p)),
        2 => Just(Step::Answer),
        1 => device.clone().prop_map(Step::Empty),
        1 => (device, 0_u8..6).prop_map(|(d, t)| Step::Forget(d, t)),
    ]
}

/// What should be on disk.
#[derive(Default)]
struct Model {
    mail: [Vec<(String, i64)>; DEVICES],
    done: BTreeMap<u8, i64>,
    requests: BTreeMap<i64, String>,
    places: i64,
}

const RECEIVED_MAX: i64 = 3;

struct World {
    fixture: Fixture,
    devices: Vec<TestDevice>,
    model: Model,
}

impl World {
    async fn new() -> Self {
        let limit = u32::try_from(RECEIVED_MAX).must();
        let fixture = Fixture::with(|limits| limits.mailbox_received_max = limit).await;
        let mut devices = Vec::new();
        for n in 0..DEVICES {
            devices.push(fixture.device("bob", &n.to_string()).await);
        }
        Self {
            fixture,
            devices,
            model: Model::default(),
        }
    }

    async fn waiting(&self, device: usize) -> Vec<mailbox::Waiting> {
        let key = self.devices[device].key;
        mailbox::page(&self.fixture.store, key, 0, 10_000)
            .await
            .must()
    }

    async fn run(&mut self, step: Step) {
        match step {
            Step::Send(texts) => self.send(texts).await,
            Step::Share(text, to) => self.share(text, &to).await,
            Step::Consume(device, positions) => self.consume(device, &positions).await,
            Step::Receive(device, positions) => self.receive(device, positions).await,
            Step::Answer => self.answer().await,
            Step::Empty(device) => {
                let mut tx = self.fixture.store.begin().await.must();
                mailbox::empty(&mut tx, self.devices[device].key)
                    .await
                    .must();
                tx.commit(Wake::default()).await.must();
                self.model.mail[device].clear();
            }
            Step::Forget(device, text) => {
                let mut tx = self.fixture.store.begin().await.must();
                let append = mail(&self.devices[device].address, &text.to_string());
                tx.append(vec![append]).await.must();
            }
        }
    }

    async fn send(&mut self, texts: Vec<(usize, u8, Option<u8>)>) {
        let (store, devices) = (&self.fixture.store, &self.devices);
        let writes = texts.iter().zip(0..).map(|((device, text, key), answer)| {
            let once = key.map(|key| once(&key.to_string(), answer));
            let append = mail(&devices[*device].address, &text.to_string());
            store.append(Append { once, ..append })
        });
        let answers = self.fixture.together(writes.collect()).await;
        for (((device, text, key), n), answer) in texts.into_iter().zip(0..).zip(answers) {
            let known = key.and_then(|key| self.model.done.get(&key).copied());
            let expected = known.map_or(Appended::New, Appended::Repeat);
            assert_eq!(answer.must(), expected);
            if known.is_none() {
                key.map(|key| self.model.done.insert(key, n));
                self.model.mail[device].push((text.to_string(), 0));
            }
        }
    }

    async fn share(&mut self, text: u8, to: &[usize]) {
        self.model.places += 1;
        let text = text.to_string();
        let mut append = parcel(self.model.places, "b.test", &text);
        for device in to {
            append
                .mail
                .extend(mail(&self.devices[*device].address, &text).mail);
            self.model.mail[*device].push((text.clone(), 0));
        }
        self.fixture.store.append(append).await.must();
        self.model.requests.insert(self.model.places, text);
    }

    async fn consume(&mut self, device: usize, positions: &[usize]) {
        let rows = self.waiting(device).await;
        let known: Vec<usize> = positions
            .iter()
            .copied()
            .filter(|at| *at < rows.len())
            .collect();
        let key = self.devices[device].key;
        let writes = known.iter().map(|at| {
            self.fixture
                .store
                .consume(key, rows[*at].msg_t, rows[*at].nonce)
        });
        let answers = self.fixture.together(writes.collect()).await;
        let mut gone = std::collections::BTreeSet::new();
        for (at, answer) in known.into_iter().zip(answers) {
            assert_eq!(answer.must(), gone.insert(at), "once, and never twice");
        }
        for at in gone.into_iter().rev() {
            self.model.mail[device].remove(at);
        }
    }

    async fn receive(&mut self, device: usize, mut positions: Vec<usize>) {
        positions.sort_unstable();
        positions.dedup();
        let rows = self.waiting(device).await;
        positions.retain(|at| *at < rows.len());
        let times = positions.iter().map(|at| rows[*at].msg_t).collect();
        self.fixture
            .store
            .received(self.devices[device].key, times)
            .await
            .must();
        for at in &positions {
            self.model.mail[device][*at].1 += 1;
        }
        self.model.mail[device].retain(|(_, streams)| *streams < RECEIVED_MAX);
    }

    async fn answer(&mut self) {
        if let Some((place, _)) = self.model.requests.pop_first() {
            self.fixture.store.answered(place).await.must();
        }
    }

    async fn check(&self) {
        for device in 0..DEVICES {
            let rows = self.waiting(device).await;
            let stored: Vec<(String, i64)> = rows
                .iter()
                .map(|row| (String::from_utf8(row.body.to_vec()).must(), row.received_on))
                .collect();
            assert_eq!(stored, self.model.mail[device], "device {device}");
            assert!(rows.windows(2).all(|pair| pair[0].msg_t < pair[1].msg_t));
        }
        let places = outbox::places(&self.fixture.store, 0, 1_000).await.must();
        assert!(
            places
                .iter()
                .map(|place| place.place)
                .eq(self.model.requests.keys().copied())
        );
        self.fixture.assert_consistent().await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_holds_what_the_model_holds(steps in prop::collection::vec(step(), 1..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().must();
        runtime.block_on(async {
            let mut world = World::new().await;
            for step in steps {
                world.run(step).await;
            }
            world.check().await;
        });
    }
}
