//! Several addresses tried at once, the better ones with a head start (RFC 8305), lower priorities of SRV only
//! after the higher ones had their time.

use std::{io, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::Instant;

use super::discovery::Endpoint;

/// How long an attempt runs before the next one starts beside it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Between addresses of one priority.
    pub(super) stagger: Duration,
    /// Before an address of a lower priority.
    pub(super) fall_back: Duration,
}

/// An attempt that failed.
pub(super) type Loser = (Endpoint, io::Error);

/// Tries `endpoints`, best first, until one succeeds. Who failed before goes to `losers`, so that a caller who
/// gives up in the middle knows it too.
pub(super) async fn race<S>(
    endpoints: &[Endpoint],
    pace: Pace,
    losers: &mut Vec<Loser>,
    connect: impl AsyncFn(&Endpoint) -> io::Result<S>,
) -> Option<(S, Endpoint)> {
    let mut waiting = endpoints.iter().peekable();
    let mut running = FuturesUnordered::new();
    let attempt = async |endpoint: &Endpoint| (endpoint.clone(), connect(endpoint).await);
    let mut priority = 0;
    let mut next_at = Instant::now();
    loop {
        let is_due = running.is_empty() || next_at <= Instant::now();
        if let Some(endpoint) = waiting.next_if(|_| is_due) {
            priority = endpoint.priority;
            running.push(attempt(endpoint));
            let head_start = match waiting.peek() {
                Some(next) if next.priority == priority => pace.stagger,
                _ => pace.fall_back,
            };
            next_at = Instant::now() + head_start;
        }
        tokio::select! {
            ended = running.next() => match ended {
                Some((endpoint, Ok(stream))) => return Some((stream, endpoint)),
                Some((endpoint, Err(error))) => {
                    losers.push((endpoint, error));
                    if waiting.peek().is_some_and(|next| next.priority == priority) {
                        next_at = Instant::now();
                    }
                }
                None => return None,
            },
            () = tokio::time::sleep_until(next_at), if waiting.peek().is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::Must as _;
    use std::{cell::RefCell, collections::HashMap, future::pending};

    use tokio::sync::oneshot;

    use super::*;

    const HOURS: Duration = Duration::from_hours(1);

    fn endpoint(priority: u16, port: u16) -> Endpoint {
        Endpoint {
            host: "host".to_owned(),
            address: ([127, 0, 0, 1], port).into(),
            priority,
        }
    }

    fn refused() -> io::Error {
        io::ErrorKind::ConnectionRefused.into()
    }

    fn pace(stagger: Duration, fall_back: Duration) -> Pace {
        Pace { stagger, fall_back }
    }

    #[tokio::test]
    async fn the_next_one_starts_at_once_when_one_fails() {
        let all = [endpoint(1, 1), endpoint(1, 2), endpoint(9, 3)];
        let mut losers = Vec::new();

        let winner = race(&all, pace(HOURS, HOURS), &mut losers, async |e| {
            if e.address.port() < 3 {
                return Err(refused());
            }
            Ok(e.address.port())
        })
        .await;

        assert_eq!(winner, Some((3, all[2].clone())));
        let failed: Vec<_> = losers.into_iter().map(|(e, _)| e).collect();
        assert_eq!(failed, all[..2]);
    }

    #[tokio::test]
    async fn a_silent_address_does_not_hold_up_the_others() {
        let all = [endpoint(1, 1), endpoint(1, 2)];
        let mut losers = Vec::new();

        let winner = race(&all, pace(Duration::ZERO, HOURS), &mut losers, async |e| {
            if e.address.port() == 1 {
                return pending().await;
            }
            Ok(())
        })
        .await;

        assert_eq!(winner, Some(((), all[1].clone())));
        assert!(losers.is_empty());
    }

    #[tokio::test]
    async fn a_lower_priority_waits_for_every_address_of_the_higher_one() {
        let all = [endpoint(1, 1), endpoint(1, 2), endpoint(9, 3)];
        let mut losers = Vec::new();
        let (slow, answer) = oneshot::channel::<()>();
        let answers = RefCell::new(HashMap::from([(2, answer)]));
        let mut slow = Some(slow);

        // The first fails; the second is slow and must win all the same.
        let racing = race(&all, pace(HOURS, HOURS), &mut losers, async |e| {
            let port = e.address.port();
            let answer = answers.borrow_mut().remove(&port);
            match answer {
                Some(answer) => answer.await.map_err(|_| refused()),
                None if port == 1 => Err(refused()),
                None => panic!("a lower priority was tried"),
            }
        });
        let mut racing = std::pin::pin!(racing);
        for _ in 0..3 {
            assert!(futures_util::poll!(&mut racing).is_pending());
        }
        slow.take().must().send(()).must();

        assert_eq!(racing.await, Some(((), all[1].clone())));
    }

    #[tokio::test]
    async fn a_lower_priority_gets_its_turn_when_the_higher_one_is_silent() {
        let all = [endpoint(1, 1), endpoint(9, 2)];
        let mut losers = Vec::new();

        let winner = race(&all, pace(HOURS, Duration::ZERO), &mut losers, async |e| {
            if e.priority == 1 {
                return pending().await;
            }
            Ok(())
        })
        .await;

        assert_eq!(winner, Some(((), all[1].clone())));
    }

    #[tokio::test]
    async fn nobody_wins_when_all_fail() {
        let all = [endpoint(1, 1), endpoint(2, 2)];
        let mut losers = Vec::new();

        let winner = race(&all, pace(HOURS, HOURS), &mut losers, async |_| {
            Err::<(), _>(refused())
        })
        .await;

        assert_eq!(winner, None);
        assert_eq!(losers.len(), 2);
    }
}
