use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ratatui::{
    DefaultTerminal, Frame,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout},
    style::{Modifier, Style},
    text::Line,
    widgets::{Row, Table},
};

use super::{
    Look,
    rates::{HEADER, Order, Rates, ServiceRate},
};

/// Draws until the user leaves.
pub(super) fn show(order: Order, interval: Duration, look: impl Fn() -> Result<Look>) -> Result<()> {
    // Where there is no data plane, the terminal is left as it is.
    let before = look()?;
    let mut terminal = ratatui::try_init().context("the terminal")?;
    let result = run(&mut terminal, order, interval, before, look);
    ratatui::restore();
    result
}

fn run(
    terminal: &mut DefaultTerminal,
    mut order: Order,
    interval: Duration,
    mut before: Look,
    look: impl Fn() -> Result<Look>,
) -> Result<()> {
    let mut rates = None;
    loop {
        terminal.draw(|frame| draw(frame, rates.as_ref(), order)).context("draw")?;
        let deadline = Instant::now() + interval;
        while event::poll(deadline.saturating_duration_since(Instant::now())).context("the keyboard")? {
            match event::read().context("the keyboard")? {
                Event::Key(key) if key.kind == KeyEventKind::Press => match key.code {
                    KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                    KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                    KeyCode::Char('f') => order = Order::Flows,
                    KeyCode::Char('p') => order = Order::Packets,
                    KeyCode::Char('b') => order = Order::Bytes,
                    KeyCode::Char('r') => order = Order::Rejected,
                    _ => {}
                },
                Event::Resize(..) => {
                    terminal.draw(|frame| draw(frame, rates.as_ref(), order)).context("draw")?;
                }
                _ => {}
            }
        }
        let now = look()?;
        rates = Some(Rates::between(&before, &now, order));
        before = now;
    }
}

/// `None` before the second look.
fn draw(frame: &mut Frame, rates: Option<&Rates>, order: Order) {
    let [rejections, services, keys] =
        Layout::vertical([Constraint::Length(2), Constraint::Fill(1), Constraint::Length(1)]).areas(frame.area());
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let line = rates.map_or_else(|| "looking".to_owned(), Rates::rejections);
    frame.render_widget(Line::styled(line, bold), rejections);
    let rows: Vec<_> = rates.iter().flat_map(|rates| &rates.services).map(ServiceRate::row).collect();
    let widths: Vec<_> = (0..HEADER.len())
        .map(|column| {
            let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            let widest = cells.max().unwrap_or(0).max(HEADER[column].len());
            Constraint::Length(u16::try_from(widest).unwrap_or(u16::MAX))
        })
        .collect();
    let table = Table::new(rows.into_iter().map(Row::new), widths).column_spacing(3);
    frame.render_widget(table.header(Row::new(HEADER).style(bold)), services);
    let by = |own: Order, text: &str| if own == order { format!("[{text}]") } else { text.to_owned() };
    let keys_line = format!(
        "q quit   most first: {} {} {} {}",
        by(Order::Flows, "f flows"),
        by(Order::Packets, "p packets"),
        by(Order::Bytes, "b bytes"),
        by(Order::Rejected, "r rejected")
    );
    frame.render_widget(Line::styled(keys_line, Style::new().add_modifier(Modifier::REVERSED)), keys);
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::{super::rates::tests::rates, *};

    fn drawn(rates: Option<&Rates>) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(80, 7)).expect("in memory");
        terminal.draw(|frame| draw(frame, rates, Order::Bytes)).expect("in memory");
        let buffer = terminal.backend().buffer();
        let row = |y| (0..80).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        (0..7).map(|y| row(y).trim_end().to_owned()).collect()
    }

    #[test]
    fn the_screen_shows_the_busiest_and_the_keys() {
        let lines = drawn(Some(&rates(Order::Bytes)));
        let expected = [
            "no_route 1.5/s",
            "",
            "SERVICE        FAMILY   FLOWS/S   PACKETS/S   BYTES/S   REJECTED/S",
            "shop/db/TCP    IPv4     0.5       50.0        1.0M      2.0",
            "shop/web/TCP   IPv4     10.0      50.0        1.5k      0",
            "shop/new/TCP   IPv4     2.0       0           0         0",
            "q quit   most first: f flows p packets [b bytes] r rejected",
        ];
        assert_eq!(lines, expected);
        assert_eq!(drawn(None)[0], "looking");
    }
}
