//! Packet tests: see `lb_tests::packets`. Needs root (or `CAP_BPF`, `CAP_NET_ADMIN`, `CAP_PERFMON` and
//! `CAP_SYS_ADMIN` for the network namespace) and `/proc`, nothing else: no files, no tools, no cgroup.

use std::{
    env,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Result, ensure};
use lb_agent::loader::{LoadOptions, Loaded};
use lb_tests::packets::{Dataplane, World, dataplane::SMALL, events, least_conn, properties, rows};
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// Loaded objects that no trial uses at the moment. One that a failed trial used is not given back.
#[derive(Clone, Default)]
struct Pool(Arc<Mutex<Free>>);

#[derive(Default)]
struct Free {
    dataplanes: Vec<Dataplane>,
    /// Loading failed: it takes the verifier seconds to say no, so it is asked once.
    cannot_load: bool,
}

impl Pool {
    fn free(&self) -> MutexGuard<'_, Free> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, world: World) -> Result<Dataplane> {
        let mut free = self.free();
        if let Some(dataplane) = free.dataplanes.pop() {
            return Ok(dataplane);
        }
        ensure!(!free.cannot_load, "the object does not load: see the first test that failed");
        drop(free);
        Dataplane::load(world, SMALL).inspect_err(|_| self.free().cannot_load = true)
    }

    /// A test of the data plane, or of any other when one is free.
    fn trial(
        &self,
        world: World,
        name: impl Into<String>,
        test: impl FnOnce(&mut Dataplane) -> Result<()> + Send + 'static,
    ) -> Trial {
        let pool = self.clone();
        Trial::test(name, move || {
            let mut dataplane = pool.take(world).map_err(failed)?;
            test(&mut dataplane).map_err(failed)?;
            if !dataplane.spoiled {
                pool.free().dataplanes.push(dataplane);
            }
            Ok(())
        })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "an argument of `map_err`")]
fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}

/// A property, and its test of a family and a protocol.
type Property = (&'static str, fn(&mut Dataplane, rows::Case) -> Result<()>);

/// What holds where flows are balanced by the flows that backends have.
const LEAST_CONN: [Property; 3] = [
    ("of two backends the one with fewer flows gets a new one", least_conn::standing_flows_decide),
    ("two choices spread flows more evenly than a hash", least_conn::flows_spread_evenly),
    ("flows that end free their place", least_conn::flows_that_end_free_their_place),
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let world = match World::enter() {
        Ok(world) => world,
        Err(error) => {
            let reason = format!("cannot run here: a network namespace cannot be set up: {error}");
            let trial = Trial::ignorable_test("packets", move || cannot_run(&reason));
            return libtest_mimic::run(&arguments, vec![trial]).exit_code();
        }
    };
    let pool = Pool::default();
    let mut trials = vec![pool.trial(world, "the verifier takes every program", |dataplane| {
        println!("{}", properties::sizes(dataplane)?);
        // Of a type of its own, and loaded only where it is needed.
        let sockets = dataplane.loaded.live_sockets()?.read()?;
        ensure!(sockets.is_empty(), "nothing is attached, and these sockets have backends: {sockets:?}");
        // The socket programs, which could not be loaded again without it, are.
        dataplane.spoiled = true;
        Ok(())
    })];
    // Nothing is attached, so nobody reads the lines.
    trials.push(Trial::test("the verifier takes every program with the packet trace", move || {
        Loaded::load(&LoadOptions { sizes: SMALL, trace: true, xdp: true, ..LoadOptions::default() })
            .map_err(|e| failed(e.into()))?;
        Ok(())
    }));
    for case in rows::CASES {
        let name = format!("{} {}: flows spread, and return to their backends", case.net.name, case.protocol_name());
        trials.push(pool.trial(world, name, move |dataplane| properties::flows_spread_and_return(dataplane, case)));
        let name = format!("{} {}: flows take turns where these are asked for", case.net.name, case.protocol_name());
        trials.push(pool.trial(world, name, move |dataplane| properties::flows_take_turns(dataplane, case)));
        for (sentence, test) in LEAST_CONN {
            let name = format!("{} {}: {sentence}", case.net.name, case.protocol_name());
            trials.push(pool.trial(world, name, move |dataplane| test(dataplane, case)));
        }
        let name = format!("{} {}: events say what becomes of packets", case.net.name, case.protocol_name());
        trials.push(pool.trial(world, name, move |dataplane| events::events_are_exact(dataplane, case)));
        let name = format!("{} {}: events are as many as were asked for", case.net.name, case.protocol_name());
        trials.push(pool.trial(world, name, move |dataplane| events::events_are_bounded(dataplane, case)));
        let name = format!("{} {}: XDP sends by other devices that can", case.net.name, case.protocol_name());
        trials.push(pool.trial(world, name, move |dataplane| properties::other_devices_need_a_driver(dataplane, case)));
        let name = format!("{} {}: an affinity lasts from the last flow on", case.net.name, case.protocol_name());
        trials.push(pool.trial(world, name, move |dataplane| properties::affinity_expires(dataplane, case)));
    }
    let rows = rows::all();
    let arrivals: Vec<_> = rows.iter().flat_map(|row| row.arrivals().cloned()).collect();
    trials.push(pool.trial(
        world,
        "mutated packets are translated whole, refused, dropped or left alone",
        move |dataplane| {
            println!("{:?}", properties::mutated_packets(dataplane, &arrivals, 0x5eed)?);
            Ok(())
        },
    ));
    for row in rows.into_iter().map(Arc::new) {
        if row.concerns_xdp() {
            let (name, row) = (format!("{}, with XDP in front", row.sentence), Arc::clone(&row));
            trials.push(pool.trial(world, name, move |dataplane| row.play_at_xdp(dataplane)));
        }
        trials.push(pool.trial(world, row.sentence.clone(), move |dataplane| row.play(dataplane)));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Says so; with `LB_REQUIRE_ALL=1` in the environment it is a failure.
fn cannot_run(reason: &str) -> Result<Completion, Failed> {
    if env::var_os("LB_REQUIRE_ALL").is_some_and(|value| value == "1") {
        return Err(reason.into());
    }
    Ok(Completion::ignored_with(reason))
}
