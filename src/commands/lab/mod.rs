//! `skiserver lab`: a whole federation on loopback, one real process for each domain, and with `--talk` people who
//! use it and check everything that the nodes do.

mod admin;
mod hear;
mod ledger;
mod nodes;
mod screen;
mod speak;
mod talk;
mod town;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    ledger::Totals,
    nodes::{Nodes, Sight},
    screen::{Row, Screen},
    talk::Talk,
};
use super::{complain, say};
use crate::{
    address::Domain,
    lab::{LabError, files, manifest::Manifest},
};

/// How often the screen changes.
const REFRESH: Duration = Duration::from_secs(1);
/// A lab without `--for` lasts this long: for practical purposes, for ever.
const FOR_EVER: Duration = Duration::from_hours(876_000);

/// Runs a federation on this machine.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The domains, separated by commas; each gets a process.
    #[arg(long, required = true, value_delimiter = ',')]
    domains: Vec<String>,
    /// Where databases, certificates, logs and lab.json go. Used again, it goes on where it was.
    #[arg(long, default_value = "lab")]
    dir: PathBuf,
    /// Lets people talk, and checks that everything arrives once, whole and in order.
    #[arg(long)]
    talk: bool,
    /// Ends after this time, such as 30s, 5m or 2h; otherwise on Ctrl-C.
    #[arg(long = "for", value_name = "TIME", value_parser = parse_time)]
    time: Option<Duration>,
}

/// Runs the command. Ends with 1 if anything acknowledged did not arrive, arrived twice or was wrong.
pub async fn run(args: Args) -> ExitCode {
    match Box::pin(lab(args)).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            complain(error);
            ExitCode::FAILURE
        }
    }
}

/// What the person at the keyboard wants: the first Ctrl-C ends the lab in order, the second at once.
#[derive(Clone, Default)]
struct Wishes {
    stop: CancellationToken,
    hurry: CancellationToken,
}

impl Wishes {
    /// Listens for signals for as long as the program runs.
    fn listen(tasks: &TaskTracker) -> Result<Self, LabError> {
        let failed = |error| LabError::Unusable(format!("signals: {error}"));
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let wishes = Self::default();
        let heard = wishes.clone();
        tasks.spawn(async move {
            for token in [heard.stop, heard.hurry] {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                token.cancel();
            }
        });
        Ok(wishes)
    }
}

/// The whole life of a lab. True if all went well.
async fn lab(args: Args) -> Result<bool, LabError> {
    let tasks = TaskTracker::new();
    let wishes = Wishes::listen(&tasks)?;
    let domains = parse_domains(&args.domains)?;
    let dir = std::path::absolute(&args.dir).map_err(|error| files::failed(&args.dir, error))?;
    let program =
        std::env::current_exe().map_err(|error| files::failed(Path::new("skiserver"), error))?;
    let file = Manifest::file(&dir);
    // A lab.json that is there belongs to a running lab.
    let _ = std::fs::remove_file(&file);
    let mut nodes = Nodes::start(&dir, &domains, &program).await?;
    let outcome = Box::pin(live(&args, &mut nodes, &file, &wishes)).await;
    let complaints = nodes.end(wishes.hurry.cancelled()).await;
    for complaint in &complaints {
        complain(complaint);
    }
    Ok(outcome? && complaints.is_empty())
}

/// From the moment the processes run until they are to end.
async fn live(
    args: &Args,
    nodes: &mut Nodes,
    file: &Path,
    wishes: &Wishes,
) -> Result<bool, LabError> {
    match wishes.stop.run_until_cancelled(nodes.ready()).await {
        Some(ready) => ready?,
        None => return Ok(true),
    }
    let manifest = nodes.manifest();
    manifest.save(file)?;
    say(format_args!("{}", file.display()));
    let talk = if args.talk {
        let start = wishes
            .stop
            .run_until_cancelled(Box::pin(Talk::start(&manifest)))
            .await;
        match start
            .transpose()
            .map_err(|error| LabError::Unusable(error.to_string()))?
        {
            Some(talk) => Some(talk),
            None => return Ok(true),
        }
    } else {
        None
    };
    let mut screen = Screen::open(manifest.domains.len(), talk.is_some());
    watch(nodes, talk.as_ref(), &mut screen, args.time, wishes).await;
    let Some(talk) = talk else {
        screen.close();
        return Ok(true);
    };
    screen.tell("ending: nothing more is sent, the rest may arrive");
    let totals = talk.finish(&wishes.hurry).await;
    let sights = nodes.look().await;
    screen.show(Duration::ZERO, &rows(nodes, &sights, Some(&talk)));
    screen.close();
    Ok(judge(&talk, totals, &rows(nodes, &sights, None)))
}

/// Shows how things are until it is time to end.
async fn watch(
    nodes: &mut Nodes,
    talk: Option<&Talk>,
    screen: &mut Screen,
    time: Option<Duration>,
    wishes: &Wishes,
) {
    let started = Instant::now();
    let deadline = started + time.unwrap_or(FOR_EVER);
    let mut refresh = interval(REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = wishes.stop.cancelled() => return,
            () = sleep_until(deadline) => return,
            _ = refresh.tick() => {}
        }
        for text in nodes.ends() {
            screen.tell(&text);
        }
        let sights = nodes.look().await;
        screen.show(started.elapsed(), &rows(nodes, &sights, talk));
    }
}

fn rows(nodes: &Nodes, sights: &[Sight], talk: Option<&Talk>) -> Vec<Row> {
    let figures = talk
        .map(|talk| talk.town().ledger.figures())
        .unwrap_or_default();
    nodes
        .domains()
        .zip(sights)
        .enumerate()
        .map(|(number, (domain, sight))| Row {
            domain: domain.as_str().to_owned(),
            sight: *sight,
            figures: figures.get(number).copied(),
        })
        .collect()
}

/// Prints what came of the talk. True if nothing was lost, repeated or wrong.
fn judge(talk: &Talk, totals: Totals, rows: &[Row]) -> bool {
    let ledger = &talk.town().ledger;
    let (failures, failed) = ledger.failures();
    for failure in &failures {
        complain(failure);
    }
    if failed > failures.len() as u64 {
        complain(format_args!(
            "{} more failures",
            failed - failures.len() as u64
        ));
    }
    for (row, lost) in rows.iter().zip(ledger.lost_by_domain()) {
        if lost > 0 && !row.sight.is_up {
            say(format_args!(
                "{lost} of the lost wait for {}, which is down",
                row.domain
            ));
        }
    }
    let unanswered = ledger.unanswered_total();
    if unanswered > 0 {
        say(format_args!(
            "{unanswered} attempts had no answer and were repeated"
        ));
    }
    let Totals {
        sent,
        answered,
        received,
        consumed,
        lost,
        repeated,
    } = totals;
    say(format_args!(
        "sent {sent}, answered {answered}, received {received}, consumed {consumed}, lost {lost}, repeated {repeated}"
    ));
    lost == 0 && repeated == 0 && failed == 0
}

fn parse_domains(texts: &[String]) -> Result<Vec<Domain>, LabError> {
    let mut domains = Vec::new();
    for text in texts {
        let domain = Domain::parse(text.trim())
            .map_err(|_| LabError::Unusable(format!("{text:?} is not a domain name")))?;
        if domains.contains(&domain) {
            return Err(LabError::Unusable(format!("{domain} is named twice")));
        }
        domains.push(domain);
    }
    Ok(domains)
}

/// Reads a number of seconds, or one with the unit ms, s, m or h.
fn parse_time(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let (number, unit) = text.split_at(digits.len());
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} is not a time like 30s"))?;
    let ms = match unit {
        "ms" => 1,
        "" | "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(format!("{unit:?} is none of ms, s, m and h")),
    };
    let time = number.checked_mul(ms).map(Duration::from_millis);
    time.filter(|time| *time < FOR_EVER)
        .ok_or_else(|| "too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Must as _;

    #[test]
    fn times_are_read_with_their_unit() {
        assert_eq!(parse_time("30"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_time("1500ms"), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse_time("5m"), Ok(Duration::from_mins(5)));
        assert_eq!(parse_time("2h"), Ok(Duration::from_hours(2)));
        for bad in [
            "",
            "s",
            "-1s",
            "3d",
            "1.5s",
            "99999999999999999999h",
            "9999999999h",
        ] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn domains_are_names_and_named_once() {
        let texts = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();

        let good = parse_domains(&texts(&["A.test", "b.test"])).must();

        assert_eq!(good[0].as_str(), "a.test");
        assert!(parse_domains(&texts(&["a.test", "A.TEST"])).is_err());
        assert!(parse_domains(&texts(&["not a domain"])).is_err());
    }
}
