//! Open streams by device, bounded. An absent or slow stream is not an error: the mailbox has the row.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use tokio::sync::{Notify, watch};

use crate::{
    error::{Error, Result},
    store::Wake,
};

/// Why a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Another stream of the same device took over.
    Replaced,
    /// The device, its tokens or its keys changed: whoever opens a stream must prove itself again.
    Revoked,
}

/// What happened to a device's mailbox since its stream last looked.
#[derive(Debug, Default)]
struct News {
    consumed: Vec<i64>,
    /// More was consumed than is kept here; the stream reads the table instead.
    overflow: bool,
}

/// News kept for one stream that does not look.
const NEWS_MAX: usize = 4_096;

#[derive(Debug)]
struct Shared {
    wake: Notify,
    news: Mutex<News>,
    end: watch::Sender<Option<End>>,
}

/// One open stream's end of the registry. Dropping it leaves.
pub struct Seat {
    live: Arc<Live>,
    device_key: i64,
    number: u64,
    shared: Arc<Shared>,
}

/// Open streams by device.
pub struct Live {
    seats: Mutex<HashMap<i64, (u64, Arc<Shared>)>>,
    numbers: AtomicU64,
    seats_max: usize,
    consuming: Mutex<HashMap<i64, Arc<Consuming>>>,
}

/// Consume calls of one device that are under way.
#[derive(Debug, Default)]
struct Consuming {
    calls: AtomicUsize,
    done: Notify,
}

/// One consume call under way; dropping it ends it.
pub struct ConsumeGuard {
    live: Arc<Live>,
    device_key: i64,
    consuming: Arc<Consuming>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    /// A registry for at most `streams_max` streams.
    pub fn new(streams_max: u32) -> Self {
        Self {
            seats: Mutex::default(),
            numbers: AtomicU64::new(1),
            seats_max: usize::try_from(streams_max).unwrap_or(usize::MAX),
            consuming: Mutex::default(),
        }
    }

    /// Takes the device's only seat; a stream that held it ends.
    pub fn sit(self: &Arc<Self>, device_key: i64) -> Result<Seat> {
        let shared = Arc::new(Shared {
            wake: Notify::new(),
            news: Mutex::default(),
            end: watch::Sender::new(None),
        });
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let mut seats = lock(&self.seats);
        if seats.len() >= self.seats_max && !seats.contains_key(&device_key) {
            return Err(Error::Busy("too many streams"));
        }
        if let Some((_, older)) = seats.insert(device_key, (number, Arc::clone(&shared))) {
            older.end.send_replace(Some(End::Replaced));
        }
        metrics::gauge!("skiserver_streams").set(u32::try_from(seats.len()).unwrap_or(u32::MAX));
        Ok(Seat {
            live: Arc::clone(self),
            device_key,
            number,
            shared,
        })
    }

    /// Whether the device has a stream.
    pub fn is_open(&self, device_key: i64) -> bool {
        lock(&self.seats).contains_key(&device_key)
    }

    /// Passes on what a commit changed.
    pub fn wake(&self, wake: &Wake) {
        let seats = lock(&self.seats);
        for (device_key, msg_t) in &wake.consumed {
            if let Some((_, shared)) = seats.get(device_key) {
                let mut news = lock(&shared.news);
                if news.consumed.len() < NEWS_MAX {
                    news.consumed.push(*msg_t);
                } else {
                    news.overflow = true;
                }
                shared.wake.notify_one();
            }
        }
        for device_key in &wake.mailboxes {
            if let Some((_, shared)) = seats.get(device_key) {
                shared.wake.notify_one();
            }
        }
        for device_key in &wake.ended {
            if let Some((_, shared)) = seats.get(device_key) {
                shared.end.send_replace(Some(End::Revoked));
            }
        }
        if wake.reopened {
            seats
                .values()
                .for_each(|(_, shared)| shared.wake.notify_one());
        }
    }

    /// Marks a consume call as under way: a backlog does not start before it ends.
    pub fn consuming(self: &Arc<Self>, device_key: i64) -> ConsumeGuard {
        let consuming = Arc::clone(lock(&self.consuming).entry(device_key).or_default());
        consuming.calls.fetch_add(1, Ordering::SeqCst);
        ConsumeGuard {
            live: Arc::clone(self),
            device_key,
            consuming,
        }
    }

    /// Returns once no consume call of the device is under way.
    pub async fn consumed(&self, device_key: i64) {
        loop {
            let Some(consuming) = lock(&self.consuming).get(&device_key).cloned() else {
                return;
            };
            let done = consuming.done.notified();
            if consuming.calls.load(Ordering::SeqCst) == 0 {
                return;
            }
            done.await;
        }
    }
}

impl Drop for ConsumeGuard {
    fn drop(&mut self) {
        let mut consuming = lock(&self.live.consuming);
        if self.consuming.calls.fetch_sub(1, Ordering::SeqCst) == 1 {
            consuming.remove(&self.device_key);
            self.consuming.done.notify_waiters();
        }
    }
}

impl Seat {
    /// Returns when there may be mail or something was consumed; what happened before is not lost.
    pub async fn news(&self) {
        self.shared.wake.notified().await;
    }

    /// What was consumed since the last call; `None` if it was too much to keep.
    pub fn consumed(&self) -> Option<Vec<i64>> {
        let mut news = lock(&self.shared.news);
        let consumed = std::mem::take(&mut news.consumed);
        if std::mem::take(&mut news.overflow) {
            None
        } else {
            Some(consumed)
        }
    }

    /// Returns when this stream must end, with the reason.
    pub async fn ended(&self) -> End {
        let mut end = self.shared.end.subscribe();
        let reason = end
            .wait_for(Option::is_some)
            .await
            .ok()
            .and_then(|reason| *reason);
        reason.unwrap_or(End::Replaced)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut seats = lock(&self.live.seats);
        if seats
            .get(&self.device_key)
            .is_some_and(|(number, _)| *number == self.number)
        {
            seats.remove(&self.device_key);
        }
        metrics::gauge!("skiserver_streams").set(u32::try_from(seats.len()).unwrap_or(u32::MAX));
    }
}
