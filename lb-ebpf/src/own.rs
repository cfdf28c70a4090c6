//! Exchanges that begin on this node, from the number of a node port.
//!
//! A process may bind that number, and a masquerade that is not ours takes any (netfilter's, of a network plugin: 1024 to
//! 65535). Who answers sends to what looks like a frontend then. With kube-proxy the connection tracking knows better;
//! here an entry in the flow table does: the answers' tuple, which applies at no hook, so that they pass.

use lb_common::{
    abi::{Address, FlowAction, FlowDirection, Protocol},
    hash,
};

use crate::{
    balance,
    family::Family,
    flow::{self, Known},
    maps::{CONFIG, Work},
    packet::Packet,
};

/// Whether answers to a packet that leaves may come to a frontend. Only a SYN begins a connection; of datagrams each may be
/// the first, so they are told by what costs less than a lookup: those from load-balancer addresses of the node itself, with
/// ports that are no node ports, are missed.
#[inline(always)]
pub fn may_begin<A: Address>(packet: &Packet<A>) -> bool {
    match packet.protocol() {
        Protocol::Tcp => packet.opens_connection(),
        Protocol::Udp => CONFIG
            .get(0)
            .is_some_and(|config| (config.node_port_min..=config.node_port_max).contains(&packet.tuple.src_port)),
    }
}

/// Enters that what answers the packet of `work` passes, if it would come to a frontend.
#[inline(always)]
pub fn enter<F: Family>(work: &mut Work<F::Address>) {
    let tuple = &work.packet.tuple;
    let protocol = work.packet.protocol() as u8;
    if !matches!(balance::frontend::<F>(tuple.src, tuple.src_port, protocol, false), Ok(Some(_))) {
        return;
    }
    work.reply_key = tuple.reversed();
    if let Some(entry) = F::flows().get_ptr_mut(&work.reply_key) {
        // SAFETY: the kernel keeps the element's memory while the program runs. Should it be given to another flow
        // meanwhile, that one's stamp is about now anyway.
        let hooks = unsafe { (*entry).hooks };
        if hooks == 0 {
            // SAFETY: as above.
            unsafe { (*entry).last_seen = flow::now() };
        }
        // A datagram may also be the answer that we send on to the client of such a flow.
        if hooks == 0 || matches!(work.packet.protocol(), Protocol::Udp) {
            return;
        }
    }
    work.reply.owner = hash::owner(&work.reply_key);
    work.reply.action = FlowAction::Stack as u8;
    work.reply.hooks = 0;
    work.reply.tcp_state = 0;
    work.reply.direction = FlowDirection::Reply as u8;
    work.reply.to = work.reply_key;
    (work.reply.backend, work.reply.generation, work.reply.service, work.reply.pad2) = (0, 0, 0, 0);
    work.reply.last_seen = flow::now();
    // Where there is no room, they are taken for requests: nothing can be done about it here.
    let _ = flow::enter::<F>(&work.reply_key, &work.reply);
}

impl<A: Address> Known<A> {
    /// Whether the entry is one of these, and the packet of no such exchange: a connection that somebody opens, or a
    /// datagram after a long silence.
    #[inline(always)]
    pub fn is_given_up(&self, packet: &Packet<A>) -> bool {
        self.hooks == 0
            && match packet.protocol() {
                Protocol::Tcp => packet.opens_connection(),
                Protocol::Udp => self.is_silent(),
            }
    }
}
