//! The harness: it gives every test a process of its own in a [`sandbox`], and prints what libtest prints, beside what
//! that has no words for: a test that this machine or user cannot run says so on one line and counts as ignored. With
//! `LB_REQUIRE_ALL=1` in the environment it fails.
//!
//! The lab's harness (`lb_tests::trial`) does the same for labs. It cannot be used here: lb-tests depends on this crate.

use std::{env, process::ExitCode, sync::Arc};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::{
    cgroup::{self, Cgroup},
    sandbox,
};

/// A test.
#[derive(Clone, Copy)]
pub(crate) struct Test {
    /// What must hold, as a sentence.
    pub(crate) name: &'static str,
    /// Shows that it does, or panics.
    pub(crate) body: Body,
}

/// Where a test runs.
#[derive(Clone, Copy)]
pub(crate) enum Body {
    /// In a process of its own, which enters a sandbox by [`sandbox::run`].
    Sandboxed(fn()),
    /// In such a process, and only when another test asks for it by [`WITH_FIXTURES`].
    Fixture(fn()),
    /// In the harness, where there can be sandboxes: for tests of the harness itself.
    Outside(fn()),
    /// In the harness, wherever that runs.
    Unprivileged(fn()),
}

/// The tests of a module, each named like its function: `sandboxed!(maps: a_full_table_is_told, …)`.
macro_rules! sandboxed {
    ($module:ident: $($name:ident),+ $(,)?) => {
        [$(crate::trial::Test {
            name: concat!(stringify!($module), "::", stringify!($name)),
            body: crate::trial::Body::Sandboxed($module::$name),
        }),+]
    };
    ($outer:ident::$module:ident: $($name:ident),+ $(,)?) => {
        [$(crate::trial::Test {
            name: concat!(stringify!($outer), "::", stringify!($module), "::", stringify!($name)),
            body: crate::trial::Body::Sandboxed($outer::$module::$name),
        }),+]
    };
}
pub(crate) use sandboxed;

/// The argument that makes the program run one test, named by the next argument, and nothing else.
const EXACT: &str = "--exact-trial";
/// A variable: where it is set, fixtures are tests as others are.
pub(crate) const WITH_FIXTURES: &str = "LB_TEST_FIXTURES";

pub(crate) fn main(tests: Vec<Test>) -> ExitCode {
    let mut arguments = env::args().skip(1);
    if arguments.next().as_deref() == Some(EXACT) {
        let name = arguments.next().unwrap_or_default();
        return match tests.iter().find(|test| test.name == name).map(|test| test.body) {
            Some(Body::Sandboxed(body) | Body::Fixture(body)) => {
                body();
                ExitCode::SUCCESS
            }
            Some(Body::Outside(_) | Body::Unprivileged(_)) | None => panic!("no sandboxed test is named {name:?}"),
        };
    }
    cgroup::sweep();
    let place = sandbox::requirements().and_then(|()| Cgroup::create()).map(Arc::new);
    let has_fixtures = env::var_os(WITH_FIXTURES).is_some();
    let trials = tests.into_iter().filter_map(|Test { name, body }| {
        let place = place.clone();
        Some(match body {
            Body::Fixture(_) if !has_fixtures => return None,
            Body::Sandboxed(_) | Body::Fixture(_) => trial(name, place, move |place| judge(name, place)),
            Body::Outside(body) => trial(name, place, move |_| {
                body();
                Ok(())
            }),
            Body::Unprivileged(body) => Trial::test(name, move || {
                body();
                Ok(())
            }),
        })
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// A test that runs where there can be sandboxes; `place` says why not.
fn trial(
    name: &str,
    place: Result<Arc<Cgroup>, String>,
    test: impl FnOnce(&Cgroup) -> Result<(), Failed> + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || match place {
        Ok(place) => test(&place).map(|()| Completion::Completed),
        Err(missing) => cannot_run(&missing),
    })
}

fn cannot_run(reason: &str) -> Result<Completion, Failed> {
    let reason = format!("cannot run here: {reason}");
    let is_required = env::var_os("LB_REQUIRE_ALL").is_some_and(|value| value == "1");
    if is_required { Err(reason.into()) } else { Ok(Completion::ignored_with(reason)) }
}

fn judge(name: &str, place: &Cgroup) -> Result<(), Failed> {
    let cgroup = place.child(name);
    let output = sandbox::this_program(cgroup.path(), &[EXACT, name]).output()?;
    let printed = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if output.status.success() { Ok(()) } else { Err(format!("{}\n{printed}", output.status).into()) }
}
