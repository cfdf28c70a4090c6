//! What becomes of a packet, or of a socket's call, and why: asked of the data plane as it is now, without a trace in it.

mod document;
mod frame;
mod question;
mod stage;
mod tables;
mod way;

use anyhow::{Result, bail};
use aya::Pod;
use clap::Args;
use lb_agent::{
    dataplane::{FamilyMaps, KernelMaps},
    loader::Pins,
    network,
};
use lb_common::abi::{AffinityKey, Flow, FrontendKey, ProtocolNumber, ServiceFlags, Tuple};

use self::{
    document::{Explanation, Explanations},
    question::{Destination, Place, Source, entrance},
    stage::Stage,
    tables::{Asker, Networks, Tables},
    way::{packet_way, socket_way},
};
use super::{
    filter::{FamilyFilter, ProtocolName},
    hooks::{self, Hook},
    output::OutputArguments,
    service::Frontend,
};

#[derive(Debug, Args)]
pub(super) struct Question {
    /// Who asks: ADDRESS, ADDRESS:PORT, [ADDRESS]:PORT; or `node`, for a process of this node that does not say from where.
    source: Source,
    /// What it asks: ADDRESS:PORT or [ADDRESS]:PORT; or [NAMESPACE/]NAME[:PORT] of a Service, PORT being the port's name or
    /// number, of which clients outside ask an external address or a node port, and others the cluster IP.
    destination: Destination,
    /// Where the source is: in a pod of this node, a process of it, or where packets come by an uplink [default: what the
    /// addresses and routes of the node say].
    #[arg(long, value_enum, value_name = "PLACE")]
    from: Option<Place>,
    /// The device of this node by which its packets come [default: the one that leads to the source].
    #[arg(long, value_name = "NAME")]
    device: Option<String>,
    /// By this protocol [default: `tcp` for an address, all of its ports for a Service].
    #[arg(short, long, value_enum, ignore_case = true, value_name = "PROTOCOL")]
    protocol: Option<ProtocolName>,
    #[command(flatten)]
    family: FamilyFilter,
}

pub(super) fn explain(pins: &Pins, question: &Question, output: &OutputArguments) -> Result<()> {
    let towards = match question.source.ip() {
        None => None,
        Some(ip) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(network::device_towards(ip))?
        }
    };
    let hooks = hooks::attached(pins)?;
    let context = Context { pins, question, hooks: &hooks, towards };
    let mut items = context.of_family::<[u8; 4]>()?;
    items.extend(context.of_family::<[u8; 16]>()?);
    if items.is_empty() {
        bail!(
            "no such Service is in the maps in the family and protocol that is asked about; `lb-agent service list` shows \
             those that are"
        );
    }
    let explanations = Explanations { items };
    output.print("ExplanationList", &explanations, || explanations.text())
}

/// What all answers have in common.
struct Context<'a> {
    pins: &'a Pins,
    question: &'a Question,
    hooks: &'a [Hook],
    /// The device that leads to the source.
    towards: Option<u32>,
}

impl Context<'_> {
    fn of_family<A: Networks + Pod>(&self) -> Result<Vec<Explanation>>
    where
        KernelMaps: FamilyMaps<A>,
        Tuple<A>: Pod,
        Flow<A>: Pod,
        AffinityKey<A>: Pod,
    {
        let Question { source, destination, from, device, protocol, family } = self.question;
        let Some(address) = source.address::<A>().filter(|_| family.includes::<A>()) else { return Ok(Vec::new()) };
        let tables = Tables::<A>::read(self.pins)?;
        let place = from.unwrap_or_else(|| source.place(&tables, self.hooks, self.towards));
        if place != Place::Node && *source == Source::Node {
            bail!("`node` is no address: name that of the source, or leave --from out");
        }
        let keys = destination.keys(&tables, place, *protocol);
        let mut stage = match entrance(self.hooks, place, device.as_deref(), self.towards)? {
            Some(entrance) if !keys.is_empty() => Some(Stage::<A>::new(self.pins, entrance)?),
            _ => None,
        };
        let answer = |key| self.answer(&tables, place, address, key, stage.as_mut());
        keys.into_iter().map(answer).collect()
    }

    fn answer<A: Networks + Pod>(
        &self,
        tables: &Tables<A>,
        place: Place,
        address: A,
        key: FrontendKey<A>,
        mut stage: Option<&mut Stage<A>>,
    ) -> Result<Explanation>
    where
        Tuple<A>: Pod,
        Flow<A>: Pod,
        AffinityKey<A>: Pod,
    {
        let source = self.question.source;
        let mut tuple = Tuple::new(address, source.port().unwrap_or_default(), key.address, key.port, key.protocol);
        if let (Some(stage), None) = (&stage, source.port()) {
            tuple.src_port = stage.free_port(&tuple)?;
        }
        let mut ways = Vec::new();
        if place != Place::Outside {
            ways.extend(socket_way(self.pins, tables, place, address, key)?);
        }
        let asker = if place == Place::Node {
            Asker::NodeSocket(address)
        } else {
            ways.push(packet_way(tables, place, &tuple, stage.as_deref_mut())?);
            Asker::Packet { source: address, from_pod: place == Place::Pod }
        };
        let frontend = tables.ask(key, asker).frontend;
        let service = frontend.map(|(_, frontend)| frontend.service);
        let value = service.and_then(|index| tables.view.services.get(&index)).map(|(_, value)| *value);
        let clients = frontend.into_iter().flat_map(|(_, frontend)| tables.view.clients(frontend));
        let balance = |flags| match flags {
            flags if flags & ServiceFlags::ROUND_ROBIN != 0 => "roundRobin",
            flags if flags & ServiceFlags::LEAST_CONN != 0 => "leastConn",
            _ => "hash",
        };
        Ok(Explanation {
            family: A::NAME,
            protocol: ProtocolNumber(tuple.protocol).to_string(),
            from: place,
            source: source.ip(),
            source_port: (tuple.src_port != 0).then_some(tuple.src_port),
            source_port_made_up: tuple.src_port != 0 && source.port().is_none(),
            destination: (key.address.to_ip(), key.port).into(),
            service: service.map(|index| tables.view.service(index)),
            frontend: frontend.map(|(key, frontend)| Frontend::new(&key, frontend.flags)),
            source_ranges: clients.map(|clients| clients.to_string()).collect(),
            affinity_seconds: value.map_or(0, |value| value.affinity_seconds),
            balance: value.map(|value| balance(value.flags)),
            attached_build: stage.map(|stage| stage.is_attached_build()),
            ways,
        })
    }
}
