//! Tests against the real Kubernetes API server: of the server itself, and of agents that follow it.

mod cluster;
mod in_cluster;
mod objects;
mod others;
mod outage;
mod rights;
mod scale;
mod server;
mod services;
mod told;

use std::process::ExitCode;

use lb_tests::{sandboxed, trial};

fn main() -> ExitCode {
    let mut tests = Vec::new();
    // The longest first, so that the others run beside it.
    tests.extend(sandboxed!(scale: five_thousand_services_in_one_go));
    tests.extend(sandboxed!(
        in_cluster: an_agent_with_what_a_pod_is_given_serves_and_goes_on_when_its_token_is_replaced
    ));
    tests.extend(sandboxed!(
        services: endpoints_come_and_go_under_traffic_and_nobody_notices,
        services_change_and_go_under_traffic,
        datagram_flows_leave_an_endpoint_that_another_service_still_has,
        datagram_flows_leave_an_endpoint_that_does_not_serve_any_more,
    ));
    tests.extend(sandboxed!(
        outage: the_api_server_is_killed_and_comes_back_under_traffic,
        agents_are_killed_and_start_again_under_traffic,
    ));
    tests.extend(sandboxed!(others: what_is_not_for_this_proxy_is_left_alone_and_the_rest_is_served));
    tests.extend(
        sandboxed!(rights: reading_services_slices_and_its_own_node_and_creating_events_is_all_that_an_agent_needs),
    );
    tests.extend(sandboxed!(
        told: an_operator_finds_events_on_what_is_not_served_and_each_once,
        a_service_without_room_is_told_once_a_node_and_keeps_nobody_from_being_served,
        load_balancers_learn_which_node_has_endpoints,
        the_time_from_a_change_of_endpoints_to_the_maps_is_measured,
    ));
    tests.extend(sandboxed!(server: a_service_is_there_after_a_restart));
    trial::main(tests)
}
