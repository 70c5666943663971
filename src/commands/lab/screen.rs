//! Shows how a lab is doing: a live table below the cursor of a terminal, plain lines elsewhere.

use std::{
    io::{self, IsTerminal as _, Stdout},
    time::Duration,
};

use ratatui::{
    Frame, Terminal, TerminalOptions, Viewport,
    backend::CrosstermBackend,
    layout::Constraint,
    style::{Color, Style, Stylize as _},
    text::Line,
    widgets::{Cell, Row as TableRow, Table, Widget as _},
};

use super::{ledger::Figures, nodes::Sight};
use crate::commands::say;

/// The columns and their widths.
const COLUMNS: [(&str, u16); 10] = [
    ("domain", 20),
    ("node", 5),
    ("users", 6),
    ("sent", 9),
    ("delivered", 10),
    ("consumed", 9),
    ("p50 ms", 8),
    ("p99 ms", 8),
    ("mailbox", 8),
    ("outbox", 8),
];

/// One line of the table.
#[derive(Debug, Clone)]
pub(super) struct Row {
    /// Which domain.
    pub(super) domain: String,
    /// What is seen of its node.
    pub(super) sight: Sight,
    /// What its users did, if anybody talks.
    pub(super) figures: Option<Figures>,
}

impl Row {
    fn state(&self) -> &'static str {
        if self.sight.is_up { "up" } else { "down" }
    }

    fn cells(&self) -> [String; 10] {
        let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |v| v.to_string());
        let figures = self.figures;
        let totals = figures.map(|f| f.totals);
        [
            self.domain.clone(),
            self.state().to_owned(),
            number(figures.map(|f| f.users)),
            number(totals.map(|t| t.sent)),
            number(totals.map(|t| t.received)),
            number(totals.map(|t| t.consumed)),
            milliseconds(figures.and_then(|f| f.p50)),
            milliseconds(figures.and_then(|f| f.p99)),
            number(self.sight.depth.map(|d| d.mailbox)),
            number(self.sight.depth.map(|d| d.outbox)),
        ]
    }

    fn line(&self) -> String {
        let [
            domain,
            state,
            users,
            sent,
            delivered,
            consumed,
            p50,
            p99,
            mailbox,
            outbox,
        ] = self.cells();
        let talk = match self.figures {
            Some(_) => format!(
                " users {users} sent {sent} delivered {delivered} consumed {consumed} p50 {p50} ms p99 {p99} ms"
            ),
            None => String::new(),
        };
        format!("{domain} {state}{talk} queue {mailbox}+{outbox}")
    }
}

fn milliseconds(time: Option<Duration>) -> String {
    time.map_or_else(
        || "-".to_owned(),
        |time| format!("{:.1}", time.as_secs_f64() * 1_000.0),
    )
}

/// Where things are shown.
pub(super) enum Screen {
    /// A live table.
    Table(Box<Terminal<CrosstermBackend<Stdout>>>),
    /// One line each time.
    Lines,
    /// One line when a node comes or goes.
    Changes(Vec<bool>),
}

impl Screen {
    /// A table if standard output is a terminal that can show one.
    pub(super) fn open(domains: usize, talks: bool) -> Self {
        let height = u16::try_from(domains).unwrap_or(u16::MAX).saturating_add(1);
        let options = TerminalOptions {
            viewport: Viewport::Inline(height),
        };
        if io::stdout().is_terminal()
            && let Ok(terminal) =
                Terminal::with_options(CrosstermBackend::new(io::stdout()), options)
        {
            return Self::Table(Box::new(terminal));
        }
        if talks {
            Self::Lines
        } else {
            Self::Changes(Vec::new())
        }
    }

    /// Shows how things are.
    pub(super) fn show(&mut self, elapsed: Duration, rows: &[Row]) {
        let line = || {
            let parts: Vec<String> = rows.iter().map(Row::line).collect();
            format!("{:>4} s  {}", elapsed.as_secs(), parts.join(" | "))
        };
        match self {
            Self::Table(terminal) => {
                // A terminal that is gone is no reason to end the lab.
                let _ = terminal.draw(|frame| draw(frame, rows));
            }
            Self::Lines => say(line()),
            Self::Changes(before) => {
                let states: Vec<bool> = rows.iter().map(|row| row.sight.is_up).collect();
                if *before != states {
                    say(line());
                    *before = states;
                }
            }
        }
    }

    /// Says something once, above the table.
    pub(super) fn tell(&mut self, text: &str) {
        match self {
            Self::Table(terminal) => {
                let _ = terminal.insert_before(1, |buffer| {
                    Line::from(text).render(buffer.area, buffer);
                });
            }
            Self::Lines | Self::Changes(_) => say(text),
        }
    }

    /// Leaves the last table standing and the cursor below it.
    pub(super) fn close(self) {
        if let Self::Table(mut terminal) = self {
            let bottom = terminal.get_frame().area().bottom().saturating_sub(1);
            let _ = terminal.set_cursor_position((0, bottom));
            let _ = terminal.show_cursor();
            say("");
        }
    }
}

fn draw(frame: &mut Frame<'_>, rows: &[Row]) {
    let header = TableRow::new(COLUMNS.map(|(name, _)| name)).style(Style::new().bold());
    let lines = rows.iter().map(|row| {
        let color = if row.sight.is_up {
            Color::Green
        } else {
            Color::Red
        };
        let [domain, state, rest @ ..] = row.cells();
        let cells = [Cell::from(domain), Cell::from(state).fg(color)];
        TableRow::new(cells.into_iter().chain(rest.map(Cell::from)))
    });
    let table =
        Table::new(lines, COLUMNS.map(|(_, width)| Constraint::Length(width))).header(header);
    frame.render_widget(table, frame.area());
}

#[cfg(test)]
mod tests {
    use crate::testing::Must as _;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::commands::lab::{admin::Depth, ledger::Totals};

    fn row(domain: &str, is_up: bool, figures: Option<Figures>) -> Row {
        let depth = is_up.then_some(Depth {
            mailbox: 4,
            outbox: 2,
        });
        Row {
            domain: domain.to_owned(),
            sight: Sight { is_up, depth },
            figures,
        }
    }

    fn figures() -> Figures {
        Figures {
            users: 3,
            totals: Totals {
                sent: 120,
                received: 118,
                consumed: 117,
                ..Totals::default()
            },
            p50: Some(Duration::from_micros(2_140)),
            p99: None,
        }
    }

    #[test]
    fn a_line_says_everything_about_a_domain() {
        let up = row("a.test", true, Some(figures())).line();
        let down = row("b.test", false, None).line();

        assert_eq!(
            up,
            "a.test up users 3 sent 120 delivered 118 consumed 117 p50 2.1 ms p99 - ms queue 4+2"
        );
        assert_eq!(down, "b.test down queue -+-");
    }

    #[test]
    fn the_table_has_a_header_and_a_line_for_each_domain() {
        let mut terminal = Terminal::new(TestBackend::new(101, 3)).must();
        let rows = [
            row("a.test", true, Some(figures())),
            row("b.test", false, Some(figures())),
        ];

        terminal.draw(|frame| draw(frame, &rows)).must();

        let screen = terminal.backend().to_string();
        let lines: Vec<&str> = screen.lines().collect();
        assert!(
            lines[0].contains("delivered") && lines[0].contains("outbox"),
            "{screen}"
        );
        assert!(
            lines[1].contains("a.test") && lines[1].contains("118"),
            "{screen}"
        );
        assert!(
            lines[2].contains("b.test") && lines[2].contains("down"),
            "{screen}"
        );
    }
}
