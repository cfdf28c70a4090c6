use anyhow::Result;
use lb_agent::loader::Pins;

use super::{
    super::output::{Column, ListOutputArguments},
    Direction, Flow, FlowFilter,
};

const COLUMNS: &[Column<Flow>] = &[
    Column::new("PROTOCOL", |flow| flow.protocol.clone()),
    Column::new("CLIENT", |flow| flow.client.to_string()),
    Column::new("FRONTEND", |flow| flow.frontend.to_string()),
    Column::new("BACKEND", |flow| flow.backend.to_string()),
    Column::new("SERVICE", |flow| flow.service.clone()),
    Column::new("STATE", Flow::state),
    Column::new("IDLE", |flow| format!("{}s", flow.idle_seconds)),
    Column::wide("SOURCE", |flow| flow.source.to_string()),
    Column::wide("ACTION", |flow| flow.action.to_owned()),
    Column::wide("REQUEST", |flow| Direction::text(flow.request.as_ref())),
    Column::wide("REPLY", |flow| Direction::text(flow.reply.as_ref())),
];

/// Prints flows in the order of the table.
pub(in crate::cli) fn list(pins: &Pins, filter: &FlowFilter, output: &ListOutputArguments) -> Result<()> {
    output.list("FlowList", COLUMNS, |list| {
        filter.visit::<[u8; 4]>(pins, |flows| flows.iter().try_for_each(|(_, flow)| list.push(flow)))?;
        filter.visit::<[u8; 16]>(pins, |flows| flows.iter().try_for_each(|(_, flow)| list.push(flow)))
    })
}

impl Flow {
    /// How far a TCP connection is, and what else is noteworthy.
    pub(super) fn state(&self) -> String {
        let Self { request, reply, .. } = self;
        let seen = |state: &str| [request, reply].map(|d| d.as_ref().is_some_and(|d| d.tcp.contains(&state)));
        let tcp = if self.protocol != "TCP" {
            None
        } else if seen("rst").contains(&true) {
            Some("reset")
        } else {
            match (seen("fin"), seen("established")) {
                ([true, true], _) => Some("closed"),
                ([true, false] | [false, true], _) => Some("closing"),
                (_, [true, true]) => Some("established"),
                _ => Some("opening"),
            }
        };
        let notes = [
            tcp,
            self.backend_gone.then_some("backend gone"),
            request.is_none().then_some("no request entry"),
            reply.is_none().then_some("no reply entry"),
        ];
        let notes: Vec<_> = notes.into_iter().flatten().collect();
        if notes.is_empty() { "-".to_owned() } else { notes.join(",") }
    }
}

impl Direction {
    fn text(direction: Option<&Self>) -> String {
        direction.map_or_else(|| "-".to_owned(), |direction| direction.hooks.join(","))
    }
}
