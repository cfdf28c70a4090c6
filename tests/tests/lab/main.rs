//! End-to-end tests, each in a lab of its own. Every test states what clients must see.

mod audit;
mod bridge;
mod change;
mod cli;
mod cluster_ip;
mod explain;
mod fragment;
mod icmp;
mod inspection;
mod isolation;
mod least_conn;
mod monitor;
mod node_port;
mod others;
mod own;
mod routing;
mod skb;
mod socket;
mod tunnel;
mod xdp;

use std::process::ExitCode;

use lb_tests::{
    sandboxed,
    trial::{self, Body, Test},
};

#[expect(clippy::too_many_lines, reason = "the list of all tests")]
fn main() -> ExitCode {
    let mut tests = vec![
        Test {
            name: "isolation::a_killed_lab_leaves_nothing_but_an_empty_cgroup",
            body: Body::Outside(isolation::a_killed_lab_leaves_nothing_but_an_empty_cgroup),
        },
        Test {
            name: "isolation::a_shell_opens_on_a_host_from_outside",
            body: Body::Outside(isolation::a_shell_opens_on_a_host_from_outside),
        },
        Test { name: isolation::FIXTURE, body: Body::Fixture(isolation::a_lab_that_waits_to_be_killed) },
    ];
    tests.extend(sandboxed!(
        isolation: the_machine_is_out_of_sight,
        threads_belong_to_the_node_of_their_host,
    ));
    tests.extend(sandboxed!(
        routing: all_hosts_reach_all_pods_without_services,
        wires_carry_full_checksums_and_pod_interfaces_do_not,
        a_refusal_and_a_silence_are_told_apart,
        large_transfers_and_fragments_arrive_whole,
    ));
    tests.extend(sandboxed!(
        cluster_ip: pods_and_nodes_reach_local_and_remote_backends_and_are_seen_as_themselves,
        a_loose_reverse_path_filter_makes_no_difference,
        a_pod_reaches_itself_through_its_service,
        a_service_without_endpoints_refuses_everybody_at_once,
        every_refusal_is_counted_under_its_reason,
        large_transfers_through_a_service_arrive_whole,
        fragments_that_are_for_no_service_pass,
    ));
    tests.extend(sandboxed!(
        bridge: pods_reach_local_and_remote_backends_and_are_seen_as_themselves,
        a_pod_reaches_itself_through_its_service,
        a_service_without_endpoints_refuses_everybody_at_once,
        clients_outside_reach_pods_on_bridges,
    ));
    tests.extend(sandboxed!(
        node_port: a_backend_on_the_node_sees_the_client_and_one_elsewhere_sees_the_node,
        a_loose_reverse_path_filter_makes_no_difference,
        the_wire_shows_right_addresses_and_checksums,
        pods_and_nodes_reach_node_ports_of_every_node,
        a_local_policy_keeps_to_the_node_and_drops_where_it_has_no_backend,
        large_transfers_from_outside_arrive_whole,
        who_sends_what_does_not_fit_the_way_out_is_told_what_does,
        addresses_of_every_scope_have_node_ports,
        an_address_that_is_local_by_a_route_alone_has_no_node_ports,
    ));
    tests.extend(sandboxed!(
        own: a_node_ports_number_is_as_good_a_source_port_as_any,
        a_node_ports_number_is_a_source_port_with_xdp,
        an_endpoint_is_reached_by_itself_from_the_port_of_a_former_connection,
        a_connection_with_the_node_ends_where_its_port_becomes_a_node_port,
    ));
    tests.extend(sandboxed!(
        xdp: node_ports_are_served_from_outside_without_a_look_from_the_stack,
        the_wire_shows_right_addresses_and_checksums,
        pods_and_nodes_reach_node_ports_of_every_node,
        a_local_policy_keeps_to_the_node_and_drops_where_it_has_no_backend,
        large_transfers_from_outside_arrive_whole,
        what_xdp_has_translated_is_not_translated_again,
        agents_that_are_killed_and_started_again_are_not_noticed,
    ));
    tests.extend(sandboxed!(audit: maps_that_others_broke_are_mended_and_flows_stay_where_they_are));
    tests.extend(sandboxed!(
        change: connections_are_spread_over_all_backends,
        endpoints_come_and_go_under_traffic_and_nobody_notices,
        a_datagram_flow_moves_on_when_its_backend_leaves,
        services_appear_and_disappear_while_the_agent_runs,
        an_agent_that_is_killed_and_started_again_is_not_noticed,
        what_changed_while_the_agent_was_down_is_caught_up,
        an_agent_that_starts_with_broken_manifests_leaves_what_was_served,
        an_agent_that_is_asked_to_end_leaves_the_data_plane_and_cleanup_removes_it,
    ));
    tests.extend(sandboxed!(least_conn: new_connections_go_where_fewer_are_held));
    tests.extend(sandboxed!(
        socket: sockets_of_both_families_reach_ipv4_frontends,
        node_ports_answer_on_localhost_of_the_node_and_nowhere_else,
        a_connect_to_a_local_policy_without_a_local_backend_fails_at_once,
        a_socket_hears_each_answer_from_whom_it_asked,
        a_socket_that_was_silent_is_balanced_anew,
        a_socket_of_the_node_keeps_the_source_that_it_is_bound_to,
    ));
    tests.extend(sandboxed!(
        others: what_is_sent_on_for_a_service_passes_no_hook_of_netfilter,
        a_firewall_that_forwards_nothing_keeps_outside_from_endpoints_here_alone,
        a_sidecar_is_told_that_the_endpoint_was_the_destination,
        a_cache_at_a_services_cluster_ip_is_not_asked,
        what_no_service_has_at_a_cluster_ip_of_the_nodes_own_is_the_nodes,
    ));
    tests.extend(sandboxed!(
        icmp: a_closed_port_behind_a_service_refuses_its_clients,
        xdp_leaves_the_errors_to_those_who_can,
        every_hop_to_a_backend_answers,
        who_sends_what_does_not_fit_beyond_the_node_is_told_what_does,
        who_sends_what_does_not_fit_beyond_the_node_is_told_with_xdp,
    ));
    tests.extend(sandboxed!(monitor: new_flows_refusals_and_drops_are_shown_until_the_watcher_is_killed));
    tests.extend(sandboxed!(cli: a_flow_is_shown_as_client_and_backend_saw_it_and_ends_when_it_is_flushed));
    tests.extend(sandboxed!(
        explain: what_is_explained_is_what_clients_meet,
        affinity_and_source_ranges_are_explained_as_they_are_applied,
        a_service_is_explained_by_its_name_with_no_more_privileges_than_the_agent_has,
        xdp_is_what_answers_where_it_is_attached,
        what_no_service_answers_is_explained_as_well,
        a_port_that_is_lent_already_is_not_promised,
        shares_of_a_maglev_table_are_those_of_its_slots,
    ));
    tests.extend(sandboxed!(
        fragment: datagrams_in_fragments_reach_services_and_so_do_answers,
        xdp_leaves_fragments_to_those_who_can,
    ));
    tests.extend(sandboxed!(skb: headers_beyond_the_linear_part_are_read_and_written));
    tests.extend(sandboxed!(
        tunnel: vxlan_leads_to_backends_of_other_nodes,
        xdp_leaves_what_goes_by_vxlan_to_who_can_send_it,
        who_sends_what_does_not_fit_into_vxlan_is_told_what_does,
        a_client_beyond_a_tun_device_reaches_backends_of_every_node,
        xdp_keeps_off_tun_devices_and_leaves_what_goes_there,
        who_asks_by_a_tun_device_is_answered_there,
        a_tun_device_leads_to_backends_of_other_nodes,
    ));
    tests.extend(sandboxed!(inspection: bpftool_shows_keys_and_values_by_field_names));
    trial::main(tests)
}
