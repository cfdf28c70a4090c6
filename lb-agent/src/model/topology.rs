//! Which endpoints a service port uses: kube-proxy's `CategorizeEndpoints` (kubernetes `pkg/proxy/topology.go`).

use super::objects::Endpoint;

/// An endpoint of a service port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate<'a, A> {
    /// Its address.
    pub address: A,
    /// Its port.
    pub port: u16,
    /// It is on this node.
    pub local: bool,
    /// Its conditions and hints.
    pub endpoint: &'a Endpoint,
}

/// Where this node is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    /// The node's name.
    pub node: &'a str,
    /// The node's zone, where it has one.
    pub zone: Option<&'a str>,
}

/// What [`categorize`] found. Both lists hold positions among the candidates, ascending.
///
/// Both are filled whatever the Service's policies: the policies choose between them, frontend by frontend, and a
/// change of policy finds the other list in place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Categorized {
    /// Endpoints in the whole cluster.
    pub cluster: Vec<u32>,
    /// Endpoints on this node.
    pub local: Vec<u32>,
    /// Some usable endpoint exists somewhere.
    pub has_any: bool,
}

/// Which endpoints the hints leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    Any,
    SameNode,
    SameZone,
}

/// Chooses among `candidates`.
pub(super) fn categorize<A>(candidates: &[Candidate<'_, A>], place: Place<'_>) -> Categorized {
    let ready = |candidate: &Candidate<'_, A>| candidate.endpoint.ready;
    let last_resort = |candidate: &Candidate<'_, A>| candidate.endpoint.serving && candidate.endpoint.terminating;
    let local = |candidate: &Candidate<'_, A>| candidate.local;

    let topology = topology(candidates, place);
    let allowed = |candidate: &Candidate<'_, A>| match topology {
        Topology::Any => true,
        Topology::SameNode => names(&candidate.endpoint.node_hints, Some(place.node)),
        Topology::SameZone => names(&candidate.endpoint.zone_hints, place.zone),
    };
    // A terminating endpoint is taken only into a list that would be empty without it, and then wherever it is.
    let cluster = positions(candidates, |c| ready(c) && allowed(c)).or_else(|| positions(candidates, last_resort));
    let local = positions(candidates, |c| local(c) && ready(c))
        .or_else(|| positions(candidates, |c| local(c) && last_resort(c)));
    let has_any = candidates.iter().any(|candidate| ready(candidate) || last_resort(candidate));
    Categorized { cluster: cluster.unwrap_or_default(), local: local.unwrap_or_default(), has_any }
}

/// Positions of the candidates that are `wanted`, `None` if there are none.
fn positions<A>(candidates: &[Candidate<'_, A>], wanted: impl Fn(&Candidate<'_, A>) -> bool) -> Option<Vec<u32>> {
    let found: Vec<u32> = (0..).zip(candidates).filter(|(_, c)| wanted(c)).map(|(position, _)| position).collect();
    (!found.is_empty()).then_some(found)
}

/// `topologyModeFromHints`: hints count only when every ready endpoint has them and one names this node or its zone.
fn topology<A>(candidates: &[Candidate<'_, A>], place: Place<'_>) -> Topology {
    let ready = || candidates.iter().map(|candidate| candidate.endpoint).filter(|endpoint| endpoint.ready);
    if ready().all(|e| !e.node_hints.is_empty()) && ready().any(|e| names(&e.node_hints, Some(place.node))) {
        Topology::SameNode
    } else if ready().all(|e| !e.zone_hints.is_empty()) && ready().any(|e| names(&e.zone_hints, place.zone)) {
        Topology::SameZone
    } else {
        Topology::Any
    }
}

fn names(hints: &[std::sync::Arc<str>], name: Option<&str>) -> bool {
    name.is_some_and(|name| hints.iter().any(|hint| **hint == *name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing::endpoint;

    const HERE: Place<'_> = Place { node: "here", zone: Some("a") };

    /// Endpoints in a short notation, words each: `r`eady, `s`erving and terminating, `S` serving only, `t`erminating
    /// only, `n`one; then `L` if local, `node=x` and `zone=x` for hints.
    fn parse(text: &str) -> Vec<Endpoint> {
        text.split(", ")
            .filter(|words| !words.is_empty())
            .map(|words| {
                let mut words = words.split(' ');
                let (ready, serving, terminating) = match words.next().expect("a state") {
                    "r" => (true, true, false),
                    "s" => (false, true, true),
                    "S" => (false, true, false),
                    "t" => (false, false, true),
                    "n" => (false, false, false),
                    other => panic!("state {other}"),
                };
                let mut endpoint = Endpoint { ready, serving, terminating, ..endpoint("10.0.0.1") };
                for word in words {
                    match word.split_once('=') {
                        None if word == "L" => endpoint.node_name = Some(HERE.node.into()),
                        Some(("node", name)) => endpoint.node_hints.push(name.into()),
                        Some(("zone", name)) => endpoint.zone_hints.push(name.into()),
                        _ => panic!("word {word}"),
                    }
                }
                endpoint
            })
            .collect()
    }

    /// Description, endpoints, zone of this node; expected: cluster, local, any.
    type Row<'a> = (&'a str, &'a str, Option<&'a str>, &'a [u32], &'a [u32], bool);

    #[test]
    fn endpoints_are_chosen_as_kube_proxy_chooses_them() {
        #[rustfmt::skip]
        let table: &[Row<'_>] = &[
            ("nothing", "", None, &[], &[], false),
            ("ready ones", "r, r L, n", None, &[0, 1], &[1], true),
            ("serving but neither ready nor terminating is unusable", "S, S L", None, &[], &[], false),
            ("terminating and not serving is unusable", "t, t L", None, &[], &[], false),
            ("terminating ones only where the list would be empty", "r, s, s L", None, &[0], &[2], true),
            ("the cluster list falls back without the local one", "s, s L, S L", None, &[0, 1], &[1], true),
            ("the local list stays empty", "r, s", None, &[0], &[], true),
            ("hints for this node", "r node=here, r node=there", Some("a"), &[0], &[], true),
            ("node hints come before zone hints", "r node=here zone=b, r node=there zone=a", Some("a"), &[0], &[], true),
            ("no node hint names this node: zones", "r node=x zone=a, r node=x zone=b", Some("a"), &[0], &[], true),
            ("one ready endpoint without a hint disables hints", "r zone=a, r", Some("a"), &[0, 1], &[], true),
            ("an unready endpoint without a hint does not", "r zone=a, r zone=b, s, n", Some("a"), &[0], &[], true),
            ("no endpoint for this zone", "r zone=b, r zone=c", Some("a"), &[0, 1], &[], true),
            ("a node without a zone", "r zone=a, r zone=b", None, &[0, 1], &[], true),
            ("several zones", "r zone=b zone=a, r zone=b", Some("a"), &[0], &[], true),
            ("the local list ignores topology", "r zone=a, r L zone=b", Some("a"), &[0], &[1], true),
            ("so does the fallback", "s zone=a, s zone=b", Some("a"), &[0, 1], &[], true),
            ("a terminating endpoint's hint does not count as ready", "s zone=a, r zone=b", Some("a"), &[1], &[], true),
        ];
        for (description, endpoints, zone, cluster, local, has_any) in table {
            let endpoints = parse(endpoints);
            let candidates: Vec<_> = endpoints
                .iter()
                .map(|endpoint| Candidate {
                    address: (),
                    port: 80,
                    local: endpoint.node_name.as_deref() == Some(HERE.node),
                    endpoint,
                })
                .collect();
            let expected = Categorized { cluster: cluster.to_vec(), local: local.to_vec(), has_any: *has_any };
            assert_eq!(categorize(&candidates, Place { zone: *zone, ..HERE }), expected, "{description}");
        }
    }
}
