//! The people of a talking lab: who they are, which devices they have, and what each knows of the others.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::ledger::{Ledger, Number};
use crate::{
    address::{DeviceAddress, UserAddress},
    client::{ClientError, Device, Door, Pack, Who},
    clock::Clock,
    lab::manifest::Manifest,
    proto::skissm::{E2eeAddress, ResponseCode},
};

/// The people of each domain, and how many devices they have.
const PEOPLE: [(&str, usize); 3] = [("alice", 2), ("bob", 1), ("carol", 1)];
/// Registrations that fail because a node is away are tried for this long.
const SETTLE: Duration = Duration::from_secs(30);
/// Pauses between attempts grow from the first to the second of these.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// A session with one other device.
#[derive(Debug, Clone)]
pub(super) struct Session {
    /// The other device.
    pub(super) peer: Number,
    /// The id that the inviter chose.
    pub(super) id: String,
    /// The number of the next item to send.
    pub(super) next: u32,
    /// Whether messages may be sent.
    pub(super) ready: bool,
}

/// One user and the numbers of its devices.
pub(super) struct Person {
    /// Its address.
    pub(super) address: UserAddress,
    /// Its devices.
    pub(super) devices: Vec<Number>,
}

/// One device and its sessions.
pub(super) struct Member {
    /// The client.
    pub(super) device: Device,
    /// Whose it is, as an index into [`Town::people`].
    pub(super) owner: usize,
    sessions: Mutex<Vec<Session>>,
}

impl Member {
    /// Its sessions.
    pub(super) fn sessions(&self) -> MutexGuard<'_, Vec<Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Everybody who talks.
pub(super) struct Town {
    /// All users.
    pub(super) people: Vec<Person>,
    /// All devices, by number.
    pub(super) members: Vec<Member>,
    /// The judge.
    pub(super) ledger: Ledger,
    /// The time for heartbeats.
    pub(super) clock: Clock,
    numbers: HashMap<DeviceAddress, Number>,
}

impl Town {
    /// Registers fresh users at every node. Ids differ from those of earlier runs.
    pub(super) async fn settle(manifest: &Manifest) -> Result<Self, ClientError> {
        let run = run_name();
        let mut town = Self {
            people: Vec::new(),
            members: Vec::new(),
            ledger: Ledger::new(Vec::new(), &[]),
            clock: Clock::default(),
            numbers: HashMap::new(),
        };
        let mut homes = Vec::new();
        for (home, node) in manifest.domains.iter().enumerate() {
            let door = Door::of(node)?;
            for (name, count) in PEOPLE {
                let user_id = format!("{name}-{run}");
                let mut devices = Vec::new();
                for device_id in ["phone", "desk"].into_iter().take(count) {
                    let device = register(&door, &Who::new(&user_id, device_id)).await?;
                    devices.push(town.members.len());
                    homes.push(home);
                    town.add(device);
                }
                let address = UserAddress {
                    domain: door.domain().clone(),
                    user_id,
                };
                town.people.push(Person { address, devices });
            }
        }
        town.ledger = Ledger::new(homes, &vec![PEOPLE.len() as u64; manifest.domains.len()]);
        Ok(town)
    }

    fn add(&mut self, device: Device) {
        self.numbers
            .insert(device.address().clone(), self.members.len());
        self.members.push(Member {
            device,
            owner: self.people.len(),
            sessions: Mutex::default(),
        });
    }

    /// The device with this address on the wire.
    pub(super) fn number(&self, address: Option<&E2eeAddress>) -> Option<Number> {
        let address = DeviceAddress::from_proto(address).ok()?;
        self.numbers.get(&address).copied()
    }

    /// A device that is known to exist.
    pub(super) fn member(&self, number: Number) -> Option<&Member> {
        self.members.get(number)
    }

    /// Repeats a call until its node answers with success, and tells how many attempts that took. None if it was
    /// refused for good, which is noted as a failure, or if `end` came first.
    pub(super) async fn until_answered<T, F>(
        &self,
        end: &CancellationToken,
        call: impl Fn() -> F,
    ) -> Option<(T, u32)>
    where
        F: Future<Output = Result<T, ClientError>> + Send,
    {
        let mut pause = PAUSE_MIN;
        for attempt in 1.. {
            match end.run_until_cancelled(call()).await? {
                Ok(answer) => return Some((answer, attempt)),
                Err(error) => self.try_again_after(&error)?,
            }
            end.run_until_cancelled(sleep(pause)).await?;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        None
    }

    /// Notes a failed call. None if no repetition will mend it.
    pub(super) fn try_again_after(&self, error: &ClientError) -> Option<()> {
        if is_passing(error) {
            self.ledger.unanswered();
            Some(())
        } else {
            self.ledger.fail(error.to_string());
            None
        }
    }
}

/// Whether a node that is away or busy explains the failure.
pub(super) fn is_passing(error: &ClientError) -> bool {
    match error {
        ClientError::Late(_) => true,
        ClientError::Rpc(status) => matches!(
            status.code(),
            Code::Unavailable
                | Code::Unknown
                | Code::Cancelled
                | Code::Internal
                | Code::DeadlineExceeded
        ),
        ClientError::Refused { code, .. } => *code == ResponseCode::ServiceUnavailable as i32,
        ClientError::Wrong(_) | ClientError::Setup(_) => false,
    }
}

async fn register(door: &Door, who: &Who) -> Result<Device, ClientError> {
    let deadline = Instant::now() + SETTLE;
    loop {
        match Device::register(&door.apart()?, who, Pack::DEFAULT).await {
            Err(error) if is_passing(&error) && Instant::now() < deadline => sleep(PAUSE_MAX).await,
            outcome => return outcome,
        }
    }
}

/// Short, and different for each run.
fn run_name() -> String {
    let mut left = Clock::default().now_ms().unsigned_abs() / 100;
    let mut name = String::new();
    while left > 0 {
        let digit = u32::try_from(left % 36).unwrap_or_default();
        name.insert(0, char::from_digit(digit, 36).unwrap_or('0'));
        left /= 36;
    }
    name
}
