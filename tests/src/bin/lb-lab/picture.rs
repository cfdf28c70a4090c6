//! The live picture: Services and their backends, who answers whom, verdicts, and what changed last.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lb_common::abi::ABI_VERSION;
use lb_tests::lab::{
    Host, LOG,
    client::Transport,
    cluster::Cluster,
    path::paths,
    traffic::{Tally, Traffic},
};
use ratatui::{
    Frame,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::Line,
    widgets::{Block, Paragraph, Row, Table},
};

use crate::{
    Services, endpoint,
    observe::{Observation, observe},
    services,
};

/// How often the picture is drawn anew, and the time that rates refer to.
const PERIOD: Duration = Duration::from_secs(1);
/// Pause between exchanges on each of the 16 paths: about 300 exchanges a second altogether.
const PAUSE: Duration = Duration::from_millis(50);

/// Draws until the user leaves.
pub(crate) fn show(cluster: Cluster, services: &Services) -> Result<()> {
    let mut terminal = ratatui::try_init().context("the terminal")?;
    let result = Picture::start(cluster, services).run(&mut terminal);
    ratatui::restore();
    result
}

struct Picture<'a> {
    cluster: Cluster,
    services: &'a Services,
    /// By client and protocol.
    traffic: Vec<(String, Traffic)>,
    /// Answers of the last period, by client and by backend.
    answers: BTreeMap<String, BTreeMap<String, u64>>,
    failures: u64,
    last_failure: String,
    /// Whether the manifest has the endpoint that can be taken away; `None` where its user left no such line.
    is_endpoint_in_force: Option<bool>,
    /// Why the last key had no effect.
    problem: Option<String>,
    /// Of which node the maps are shown: 0 or 1.
    shown: usize,
}

impl<'a> Picture<'a> {
    fn start(cluster: Cluster, services: &'a Services) -> Self {
        let everyday = paths(&cluster.lab).filter(|path| matches!(path.transport, Transport::Http | Transport::Udp));
        let start = |service| {
            move |path: lb_tests::lab::path::Path| {
                let name = path.client.name().to_owned();
                (name, Traffic::start(path.client, path.transport, path.address(service), PAUSE))
            }
        };
        let mut traffic: Vec<_> = everyday.map(start(&services.web)).collect();
        // A client of the Service without endpoints, so that there are verdicts to see.
        traffic.extend(
            paths(&cluster.lab).filter(|path| path.transport == Transport::Tcp).take(1).map(start(&services.empty)),
        );
        Self {
            cluster,
            services,
            traffic,
            answers: BTreeMap::new(),
            failures: 0,
            last_failure: String::new(),
            is_endpoint_in_force: None,
            problem: None,
            shown: 0,
        }
    }

    fn run(&mut self, terminal: &mut ratatui::DefaultTerminal) -> Result<()> {
        loop {
            self.count();
            self.look_for_endpoint();
            let observation = observe(self.cluster.nodes()[self.shown]);
            terminal.draw(|frame| self.draw(frame, &observation)).context("draw")?;
            let deadline = Instant::now() + PERIOD;
            while event::poll(deadline.saturating_duration_since(Instant::now())).context("the keyboard")? {
                let Event::Key(key) = event::read().context("the keyboard")? else { continue };
                match key.code {
                    _ if key.kind != KeyEventKind::Press => {}
                    KeyCode::Char('q') => return Ok(()),
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                    KeyCode::Char('e') => {
                        self.problem = self.toggle_endpoint().err().map(|error| format!("{error:#}"));
                    }
                    KeyCode::Char('k') => self.problem = self.toggle_agents().err(),
                    KeyCode::Char('n') => {
                        self.shown = 1 - self.shown;
                        break;
                    }
                    _ => {}
                }
            }
        }
    }

    fn count(&mut self) {
        self.answers.clear();
        for (client, traffic) in &self.traffic {
            let Tally { answers, failures } = traffic.take();
            let row = self.answers.entry(client.clone()).or_default();
            for (backend, count) in answers {
                *row.entry(backend).or_default() += count;
            }
            for failure in failures {
                self.failures += 1;
                self.last_failure = format!("{client}: {failure:?}");
            }
        }
    }

    /// The pod that can be taken away from its Service.
    fn endpoint(&self) -> &Host {
        &self.cluster.lab.nodes[1].pods[1]
    }

    fn look_for_endpoint(&mut self) {
        let text = fs::read_to_string(self.cluster.manifests.path(&self.services.web)).unwrap_or_default();
        self.is_endpoint_in_force = endpoint::is_in_force(&text, self.endpoint().addresses());
    }

    /// Changes nothing but the lines of the endpoint: the user may have edited the others.
    fn toggle_endpoint(&self) -> Result<()> {
        let (pod, web) = (self.endpoint(), &self.services.web);
        let path = self.cluster.manifests.path(web);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let text = endpoint::toggled(&text, pod.addresses()).with_context(|| {
            format!("{}: no line `- {{addresses: [\"{}\"], …}}`", path.display(), pod.addresses().v4)
        })?;
        let name = path.file_name().and_then(|name| name.to_str()).context("a file has a name")?;
        self.cluster.manifests.try_write(name, &text).with_context(|| path.display().to_string())
    }

    fn toggle_agents(&mut self) -> Result<(), String> {
        if self.cluster.agents.iter().any(Option::is_some) {
            self.cluster.kill_agents();
            return Ok(());
        }
        // One that has ended at once would be taken for one that runs.
        self.cluster.try_restart_agents().inspect_err(|_| self.cluster.kill_agents())
    }

    fn draw(&self, frame: &mut Frame, observation: &Result<Observation>) {
        let area = frame.area();
        let directions = self.directions(area.width);
        let services_height = observation.as_ref().map_or(0, |seen| seen.services.len()).max(3);
        let pods = self.cluster.lab.all_pods().count();
        let [top, services, middle, bottom, problem, keys] = Layout::vertical([
            Constraint::Length(height(directions.len(), 0)),
            Constraint::Length(height(services_height, 1)),
            Constraint::Length(height(pods, 1)),
            Constraint::Min(4),
            Constraint::Length(u16::from(self.problem.is_some())),
            Constraint::Length(1),
        ])
        .areas(area);
        // A client's name is as wide as its column.
        let answers_width = 15 + 11 * u16::try_from(self.answers.len()).unwrap_or(0);
        let [answers, verdicts] =
            Layout::horizontal([Constraint::Length(answers_width), Constraint::Fill(1)]).areas(middle);
        let node = self.cluster.nodes()[self.shown].host.name();
        let directions = directions.into_iter().map(Line::raw).collect::<Vec<_>>();
        frame.render_widget(Paragraph::new(directions).block(Block::bordered().title(" lb: a lab of two nodes ")), top);
        match observation {
            Ok(observation) => {
                services::draw(frame, services, node, observation);
                draw_verdicts(frame, verdicts, node, observation);
            }
            Err(error) => frame.render_widget(Paragraph::new(format!("{error:#}")).block(Block::bordered()), services),
        }
        self.draw_answers(frame, answers);
        self.draw_changes(frame, bottom);
        let agents = if self.cluster.agents.iter().any(Option::is_some) { "kill" } else { "start" };
        let endpoint = if self.is_endpoint_in_force == Some(false) { "add" } else { "remove" };
        let other = self.cluster.nodes()[1 - self.shown].host.name();
        let line = format!(
            " q quit   n maps of {other}   k {agents} the agents   e {endpoint} endpoint {}",
            self.endpoint().name()
        );
        if let Some(text) = &self.problem {
            frame.render_widget(Line::styled(format!(" {text}"), Style::new().fg(Color::Red)), problem);
        }
        frame.render_widget(Line::styled(line, Style::new().add_modifier(Modifier::REVERSED)), keys);
    }

    /// What the user may do elsewhere, in lines that fit.
    fn directions(&self, width: u16) -> Vec<String> {
        let (pid, node) = (self.cluster.lab.outer_pid, self.cluster.nodes()[self.shown].host.name());
        let inside = usize::from(width.saturating_sub(2)).max(40);
        [
            format!("edit   {}", self.cluster.manifests.directory().display()),
            format!("shell  nsenter -t {pid} -m -p ip netns exec {node} bash"),
            format!("maps   nsenter -t {pid} -m -p bpftool map dump pinned /run/lb/{node}/bpf/lb/v{ABI_VERSION}/maps/FRONTENDS4"),
        ]
        .iter()
        .flat_map(|line| services::wrap(line, inside))
        .collect()
    }

    fn draw_answers(&self, frame: &mut Frame, area: Rect) {
        let clients: Vec<&String> = self.answers.keys().collect();
        let rows = self.cluster.lab.all_pods().map(|pod| {
            let cells =
                clients.iter().map(|client| self.answers[*client].get(pod.name()).copied().unwrap_or(0).to_string());
            Row::new([pod.name().to_owned()].into_iter().chain(cells))
        });
        let header = Row::new(["answered by"].into_iter().chain(clients.iter().map(|client| client.as_str())));
        let widths = [Constraint::Length(11)].into_iter().chain(clients.iter().map(|_| Constraint::Length(10)));
        let refused =
            format!(" connections a second · {} refused or failed, last: {} ", self.failures, self.last_failure);
        let table = Table::new(rows, widths).header(bold(header)).block(Block::bordered().title(refused));
        frame.render_widget(table, area);
    }

    fn draw_changes(&self, frame: &mut Frame, area: Rect) {
        let lines = usize::from(area.height.saturating_sub(2)) / 2;
        let mut text = Vec::new();
        for node in self.cluster.nodes() {
            let log = fs::read_to_string(node.directory().join(LOG)).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(lines).collect();
            text.extend(last.into_iter().rev().map(|line| Line::raw(format!("{} {}", node.host.name(), short(line)))));
        }
        frame.render_widget(
            Paragraph::new(text).block(Block::bordered().title(" last changes, as the agents log them ")),
            area,
        );
    }
}

fn draw_verdicts(frame: &mut Frame, area: Rect, node: &str, observation: &Observation) {
    let is_wide = area.width >= 48;
    let rows = observation.verdicts.iter().map(|(reason, count)| {
        let verdict = is_wide.then(|| format!("{:?}", reason.disposition()));
        Row::new(verdict.into_iter().chain([reason.name().to_owned(), count.to_string()]))
    });
    let verdict = is_wide.then_some(Constraint::Length(8));
    let widths = verdict.into_iter().chain([Constraint::Fill(1), Constraint::Length(if is_wide { 12 } else { 6 })]);
    let header = bold(Row::new(is_wide.then_some("verdict").into_iter().chain(["reason", "count"])));
    let table = Table::new(rows, widths).header(header);
    frame.render_widget(table.block(Block::bordered().title(format!(" verdicts of {node} "))), area);
}

/// A line of an agent's log, of whose time of day the hours, minutes and seconds are enough here.
fn short(line: &str) -> String {
    match (line.split_once('T'), line.split_once("Z ")) {
        (Some((_, from_time)), Some((_, rest))) => {
            format!("{} {}", from_time.get(..8).unwrap_or_default(), rest.trim_start())
        }
        _ => line.to_owned(),
    }
}

/// The height of a bordered block with this many lines and headers.
fn height(lines: usize, headers: u16) -> u16 {
    u16::try_from(lines).unwrap_or(u16::MAX).saturating_add(headers + 2)
}

pub(crate) fn bold(row: Row<'_>) -> Row<'_> {
    row.style(Style::new().fg(Color::Cyan).add_modifier(Modifier::BOLD))
}
