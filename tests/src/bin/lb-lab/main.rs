//! The demonstration that `cargo xtask run` starts: a small cluster in network namespaces, an agent on each node, and
//! traffic from everywhere. With a terminal it draws a live picture; without one, or with `--once`, it checks
//! everything once and ends.

mod checks;
mod directory;
mod endpoint;
mod observe;
mod picture;
mod services;

use std::{
    io::{IsTerminal, stdin, stdout},
    path::PathBuf,
    process::{self, ExitCode},
};

use clap::Parser;
use directory::Directory;
use lb_tests::{
    lab::{
        self, Host, Lab, ReversePathFilter,
        cluster::Cluster,
        manifest::{Manifests, Service},
        sandbox,
    },
    trial,
};

const AFTER_HELP: &str = "\
The lab: an outside client, a router, node1 and node2, each with two pods (pod0, pod1) and one whose sockets the node \
does not see (vm0). All of it lives in namespaces of its own; nothing of this machine's network is touched, and nothing \
is left behind.

A shell in a host of the lab, PID being what the picture shows:
    nsenter -t PID -m -p ip netns exec node1 bash
Hosts: client, router, node1, node2, node1-pod0, node1-pod1, node1-vm0, node2-pod0, node2-pod1, node2-vm0

What node1's agent tells of itself, from its pinned maps:
    nsenter -t PID -m -p ip netns exec node1 $PWD/target/debug/lb-agent status --bpffs /run/lb/node1/bpf

A map of node1's agent, by field names:
    nsenter -t PID -m -p bpftool map dump pinned /run/lb/node1/bpf/lb/v5/maps/FRONTENDS4";

/// Services balanced between hosts by our programs, in a lab of network namespaces.
#[derive(Parser)]
#[command(name = "cargo xtask run", after_help = AFTER_HELP)]
struct Options {
    /// Check every path once, print a line for each, and leave: 0 if all hold
    #[arg(long)]
    once: bool,
    /// Directory, new or empty, for the manifests that the agents follow; edit them while it runs [default:
    /// target/lab/manifests, which one lab at a time can have and finds empty; with --once, one that goes away with the lab]
    #[arg(long)]
    manifests: Option<PathBuf>,
}

/// The Services of the lab.
pub(crate) struct Services {
    /// Of all pods.
    pub(crate) web: Service,
    /// Of one pod each, of every pod that the checks expect to answer.
    pub(crate) of_pod: Vec<(String, Service)>,
    /// Of none.
    pub(crate) empty: Service,
}

impl Services {
    fn new(lab: &Lab) -> Self {
        let pods = (10..).zip(lab.all_pods());
        let of_pod = |(number, pod): (u8, &Host)| {
            (pod.name().to_owned(), Service::new(&format!("only-{}", pod.name()), number).with_endpoints([pod]))
        };
        Self {
            web: Service::new("web", 1).with_endpoints(lab.all_pods()),
            of_pod: pods.map(of_pod).collect(),
            empty: Service::new("empty", 2),
        }
    }

    /// The Service that has this pod as its only endpoint.
    pub(crate) fn of(&self, pod: &Host) -> &Service {
        let found = self.of_pod.iter().find(|(name, _)| name == pod.name());
        &found.expect("every pod has such a Service").1
    }

    /// Those that the picture shows, and for the checks the others, too.
    fn all(&self, once: bool) -> impl Iterator<Item = &Service> {
        let of_pod = self.of_pod.iter().filter(move |_| once).map(|(_, service)| service);
        [&self.web, &self.empty].into_iter().chain(of_pod)
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let once = options.once || !stdin().is_terminal() || !stdout().is_terminal();
    lab::sweep();
    let sandbox = match sandbox::enter() {
        Ok(sandbox) => sandbox,
        Err(reason) => {
            eprintln!("the lab cannot run here: {reason}");
            return ExitCode::FAILURE;
        }
    };
    let directory = match Directory::make(options.manifests.as_deref(), once) {
        Ok(directory) => directory,
        Err(error) => {
            eprintln!("{error:#}");
            process::exit(1);
        }
    };
    let lab = Lab::new(sandbox, ReversePathFilter::Strict);
    let services = Services::new(&lab);
    let manifests = Manifests::create(&directory.path, lab.nodes.iter().map(|node| &node.host));
    let started = std::panic::catch_unwind(|| Cluster::start_on(lab, manifests, services.all(once)));
    let Ok(cluster) = started else {
        trial::print_logs();
        process::exit(1);
    };
    // Process 1 of the sandbox ends the sandbox: nothing needs to be joined or dropped.
    process::exit(if once {
        i32::from(!checks::run(cluster, &services))
    } else if let Err(error) = picture::show(cluster, &services) {
        eprintln!("{error:#}");
        1
    } else {
        0
    })
}
