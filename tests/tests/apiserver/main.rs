//! Tests against the real Kubernetes API server.

mod server;

use std::process::ExitCode;

use lb_tests::{sandboxed, trial};

fn main() -> ExitCode {
    let tests = sandboxed!(server: a_service_is_there_after_a_restart, thousands_of_services_are_created_at_once);
    trial::main(tests.into())
}
