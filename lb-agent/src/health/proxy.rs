//! The state of health, by the rules of `pkg/proxy/healthcheck/proxy_health.go` of Kubernetes.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::jiff::Timestamp;
use lb_agent::model::Node;

/// Key of the taint that the cluster autoscaler puts on a node before it removes it.
pub(super) const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// The moment, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) monotonic: Instant,
    pub(crate) wall: Timestamp,
}

impl Now {
    pub(crate) fn read() -> Self {
        Self { monotonic: Instant::now(), wall: Timestamp::now() }
    }
}

/// One of something for each IP family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Families<T> {
    pub(crate) v4: T,
    pub(crate) v6: T,
}

impl<T> Families<T> {
    pub(crate) fn all(&self, holds: impl Fn(&T) -> bool) -> bool {
        holds(&self.v4) && holds(&self.v6)
    }
}

/// What is known of one family's maps.
#[derive(Clone, Copy, Debug, Default)]
struct Family {
    /// When they were last what they should be.
    updated: Option<Timestamp>,
    /// Since when something is to be written.
    pending: Option<Instant>,
}

/// The health of the data plane. Written by its thread, read by the servers.
#[derive(Debug)]
pub(crate) struct ProxyHealth {
    /// Whether this node is eligible where there is no Node.
    eligible_without_node: bool,
    /// How long a change may wait to be in the maps.
    patience: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    families: Families<Family>,
    eligible: bool,
}

/// The health at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// By family: when it was updated last, and whether nothing waits too long.
    pub(crate) families: Families<(Option<Timestamp>, bool)>,
    /// Whether the node is to have traffic.
    pub(crate) eligible: bool,
}

impl Report {
    /// Whether nothing waits too long.
    pub(crate) fn is_in_time(&self) -> bool {
        self.families.all(|(_, in_time)| *in_time)
    }

    /// Whether the maps have been what they should be.
    pub(crate) fn is_synchronized(&self) -> bool {
        self.families.all(|(updated, _)| updated.is_some())
    }

    /// When any family was updated last.
    pub(crate) fn last_updated(&self) -> Option<Timestamp> {
        self.families.v4.0.max(self.families.v6.0)
    }
}

impl ProxyHealth {
    /// Nothing has been synchronized, and no Node is known. In a cluster every node has one. A change may wait for twice
    /// kube-proxy's `syncPeriod` (`newProxyServer` of `cmd/kube-proxy/app/server.go`).
    pub(crate) fn new(in_cluster: bool, sync_period: Duration) -> Self {
        let eligible_without_node = !in_cluster;
        let state = State { families: Families::default(), eligible: eligible_without_node };
        Self { eligible_without_node, patience: sync_period.saturating_mul(2), state: Mutex::new(state) }
    }

    /// Takes note that the data plane begins to work on something. A thread that hangs is one that does not end it.
    pub(crate) fn begun(&self, now: Instant) {
        let State { families: Families { v4, v6 }, .. } = &mut *self.state();
        for family in [v4, v6] {
            family.pending.get_or_insert(now);
        }
    }

    /// Takes note that all that could be done yet was done: not everything is listed.
    pub(crate) fn waiting(&self) {
        let State { families: Families { v4, v6 }, .. } = &mut *self.state();
        (v4.pending, v6.pending) = (None, None);
    }

    /// Takes note that a synchronization has ended, and in which families it succeeded. True for the one by which all
    /// maps are what they should be for the first time.
    pub(crate) fn synchronized(&self, succeeded: Families<bool>, now: Timestamp) -> bool {
        let mut state = self.state();
        let families = &mut state.families;
        let before = families.all(|family| family.updated.is_some());
        for (family, succeeded) in [(&mut families.v4, succeeded.v4), (&mut families.v6, succeeded.v6)] {
            if succeeded {
                *family = Family { updated: Some(now), pending: None };
            }
        }
        !before && families.all(|family| family.updated.is_some())
    }

    /// Takes note of what the API says about this node (`NodeEligible`).
    pub(crate) fn set_node(&self, node: Option<&Node>) {
        let is_eligible =
            |node: &Node| !node.deleting && !node.taints.iter().any(|taint| taint.as_ref() == TO_BE_DELETED);
        self.state().eligible = node.map_or(self.eligible_without_node, is_eligible);
    }

    pub(crate) fn report(&self, now: Instant) -> Report {
        let state = self.state();
        let of = |family: &Family| {
            let waits = family.pending.map(|since| now.saturating_duration_since(since));
            (family.updated, waits.is_none_or(|waits| waits < self.patience))
        };
        let Families { v4, v6 } = &state.families;
        Report { families: Families { v4: of(v4), v6: of(v6) }, eligible: state.eligible }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every state in between is a state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
