//! A lab touches nothing outside, and leaves nothing.

use lb_tests::lab::sandbox::Sandbox;

pub(crate) fn a_lab_that_is_killed(_: Sandbox) {}
pub(crate) fn a_killed_lab_leaves_nothing_but_an_empty_cgroup() {}
