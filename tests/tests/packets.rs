//! Packet tests: see `lb_tests::packets`. Needs root (or `CAP_BPF`, `CAP_NET_ADMIN`, `CAP_PERFMON` and
//! `CAP_SYS_ADMIN` for the network namespace) and nothing else: no files, no tools, no cgroup.

use std::{
    env,
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use lb_tests::packets::{Dataplane, World, rows};

/// Loaded objects that no trial uses at the moment. One that a failed trial used is not given back.
type Pool = Arc<Mutex<Vec<Dataplane>>>;

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let world = match World::enter() {
        Ok(world) => world,
        Err(error) => {
            let reason = format!("a network namespace cannot be set up: {error}");
            let trial = Trial::ignorable_test("packets", move || cannot_run(reason));
            return libtest_mimic::run(&arguments, vec![trial]).exit_code();
        }
    };
    let pool = Pool::default();
    let trials = rows::all().into_iter().map(|row| {
        let pool = Arc::clone(&pool);
        Trial::ignorable_test(row.sentence.clone(), move || {
            let mut dataplane = take(&pool, world)?;
            row.play(&mut dataplane).map_err(|error| format!("{error:#}"))?;
            pool.lock().unwrap_or_else(PoisonError::into_inner).push(dataplane);
            Ok(Completion::Completed)
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit_code()
}

fn take(pool: &Pool, world: World) -> Result<Dataplane, Failed> {
    let free = pool.lock().unwrap_or_else(PoisonError::into_inner).pop();
    match free {
        Some(dataplane) => Ok(dataplane),
        None => Dataplane::load(world).map_err(|error| format!("{error:#}").into()),
    }
}

/// Says so; with `LB_REQUIRE_ALL=1` in the environment it is a failure.
fn cannot_run(reason: String) -> Result<Completion, Failed> {
    let reason = format!("cannot run here: {reason}");
    if env::var_os("LB_REQUIRE_ALL").is_some_and(|value| value == "1") {
        return Err(reason.into());
    }
    Ok(Completion::ignored_with(reason))
}
