//! Scenarios against the real kube-proxy and against `lb-agent`: see [`lb_tests::differential`].

mod document;
mod harness;

use std::{env, process::ExitCode};

use lb_tests::differential::worker;

fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some(worker::ARGUMENT) {
        return worker::main();
    }
    harness::main()
}
