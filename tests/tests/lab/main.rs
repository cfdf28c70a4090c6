//! End-to-end tests, each in a lab of its own. Every test states what clients must see.

mod isolation;
mod routing;

use std::process::ExitCode;

use lb_tests::{
    sandboxed,
    trial::{self, Body, Test},
};

fn main() -> ExitCode {
    let mut tests = vec![Test {
        name: "isolation::a_killed_lab_leaves_nothing_but_an_empty_cgroup",
        body: Body::Outside(isolation::a_killed_lab_leaves_nothing_but_an_empty_cgroup),
    }];
    tests.extend(sandboxed!(isolation: a_lab_that_is_killed));
    tests.extend(sandboxed!(
        routing: all_hosts_reach_all_pods_without_services,
        a_lab_is_built_within_a_second,
    ));
    trial::main(tests)
}
