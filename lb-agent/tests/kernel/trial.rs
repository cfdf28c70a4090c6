//! The harness: it gives every test a process of its own in a [`sandbox`], and prints what libtest prints, beside what
//! that has no words for: a test that this machine or user cannot run says so on one line and counts as ignored. With
//! `LB_REQUIRE_ALL=1` in the environment it fails.
//!
//! The lab's harness (`lb_tests::trial`) does the same for labs. It cannot be used here: lb-tests depends on this crate.

use std::{
    env,
    process::{Command, ExitCode},
};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::sandbox;

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
    /// In the harness: it needs no privileges.
    Outside(fn()),
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

pub(crate) fn main(tests: Vec<Test>) -> ExitCode {
    let mut arguments = env::args().skip(1);
    if arguments.next().as_deref() == Some(EXACT) {
        let name = arguments.next().unwrap_or_default();
        let Some(Test { body: Body::Sandboxed(body), .. }) = tests.iter().find(|test| test.name == name) else {
            panic!("no sandboxed test is named {name:?}")
        };
        body();
        return ExitCode::SUCCESS;
    }
    let missing = sandbox::what_is_missing();
    let trials = tests.into_iter().map(|Test { name, body }| match body {
        Body::Sandboxed(_) => {
            let missing = missing.clone();
            Trial::ignorable_test(name, move || missing.map_or_else(|| judge(name), |missing| cannot_run(&missing)))
        }
        Body::Outside(body) => Trial::test(name, move || {
            body();
            Ok(())
        }),
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

fn cannot_run(reason: &str) -> Result<Completion, Failed> {
    let reason = format!("cannot run here: {reason}");
    let is_required = env::var_os("LB_REQUIRE_ALL").is_some_and(|value| value == "1");
    if is_required { Err(reason.into()) } else { Ok(Completion::ignored_with(reason)) }
}

fn judge(name: &str) -> Result<Completion, Failed> {
    let mut command = Command::new(env::current_exe()?);
    let output = sandbox::start(command.args([EXACT, name]));
    let printed = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    if output.status.success() {
        Ok(Completion::Completed)
    } else {
        Err(format!("{}\n{printed}", output.status).into())
    }
}
