//! What needs a kernel: loading, pinning, attaching, and the maps themselves.

mod agent;
mod audit;
mod cgroup;
mod cli;
mod killed;
mod loading;
mod maps;
mod monitoring;
mod network;
// Of lb-tests, which depends on this crate.
#[path = "../../../tests/src/lab/owner.rs"]
mod owner;
mod recount;
mod sandbox;
mod trial;
mod xdp;

use std::process::ExitCode;

use trial::{Body, Test, sandboxed};

fn main() -> ExitCode {
    let mut tests = vec![
        Test {
            name: "cli::documented::completions_and_manual_pages_know_every_command",
            body: Body::Unprivileged(cli::documented::completions_and_manual_pages_know_every_command),
        },
        Test {
            name: "monitoring::the_reader_of_queries_finds_what_is_not_there",
            body: Body::Unprivileged(monitoring::the_reader_of_queries_finds_what_is_not_there),
        },
        Test {
            name: "monitoring::the_dashboard_has_a_place_for_each_panel_and_asks_the_source_that_is_chosen",
            body: Body::Unprivileged(
                monitoring::the_dashboard_has_a_place_for_each_panel_and_asks_the_source_that_is_chosen,
            ),
        },
        Test {
            name: "killed::a_killed_harness_leaves_nothing_when_the_next_one_has_run",
            body: Body::Outside(killed::a_killed_harness_leaves_nothing_when_the_next_one_has_run),
        },
        Test { name: killed::FIXTURE, body: Body::Fixture(killed::an_agent_that_waits_to_be_killed) },
    ];
    tests.extend(sandboxed!(
        agent: an_agent_that_was_killed_leaves_a_data_plane_that_the_next_one_adopts,
        a_load_balancer_learns_which_node_has_endpoints,
        a_named_device_that_is_not_there_is_told_and_served_when_it_comes,
        each_of_many_changes_and_rejections_is_a_line_of_the_log_with_its_name,
        pods_get_their_programs_as_they_come,
        a_manifest_that_cannot_be_read_is_one_line_of_the_log_and_one_when_it_can,
        a_refused_connection_from_outside_is_counted_and_traced,
        three_capabilities_are_enough,
        missing_privileges_and_a_bpffs_that_cannot_be_mounted_are_told_with_a_remedy,
        a_bpffs_that_is_not_mounted_is_mounted,
        an_address_for_healthz_that_is_taken_does_not_keep_the_data_plane_down,
        an_api_server_that_is_away_keeps_health_at_503_and_devices_served,
        a_restart_takes_the_programs_off_no_uplink_that_is_one_by_the_nodes_address_alone,
        an_agent_whose_configuration_file_changes_ends_and_the_next_one_follows_it,
        bad_configuration_is_exit_code_64_and_names_the_flag,
    ));
    tests.extend(sandboxed!(
        audit: what_others_write_to_pinned_maps_is_put_right_within_a_minute_and_counted,
        a_look_at_ten_thousand_services_costs_little_and_never_much_at_once,
        a_look_at_a_full_table_of_clients_never_costs_much_at_once,
    ));
    tests.extend(sandboxed!(cli::documented: every_command_and_every_field_is_in_the_document));
    tests.extend(sandboxed!(
        cli::flows: a_flow_is_listed_once_by_any_of_its_features_and_flushed_alone,
        a_list_of_many_flows_takes_no_more_memory_than_one_of_few,
    ));
    tests.extend(sandboxed!(
        cli::lists: services_and_backends_are_told_by_name_family_and_protocol,
        affinities_say_which_of_them_are_in_force,
        drops_are_counted_and_followed,
    ));
    tests.extend(sandboxed!(
        cli::monitor: events_are_printed_to_one_watcher_and_end_with_it,
        pins_of_an_agent_from_before_events_are_read_and_adopted,
    ));
    tests.extend(sandboxed!(
        cli::preflight: a_node_that_can_run_the_agent_is_left_as_it_was,
        what_is_missing_is_a_failure_with_a_remedy,
        others_on_our_hooks_and_ranges_that_overlap_are_warnings,
        a_data_plane_that_is_there_and_a_kube_proxy_are_told,
    ));
    tests.extend(sandboxed!(
        cli::top: rates_are_of_what_services_do_meanwhile,
        a_terminal_shows_a_screen_until_it_is_left,
    ));
    tests.extend(sandboxed!(
        loading: every_map_but_the_trace_is_pinned_and_adopted,
        a_pinned_map_of_another_layout_is_refused_by_name_and_kept,
        counters_of_a_version_with_fewer_reasons_are_replaced,
        the_data_plane_of_another_layout_is_refused_until_it_is_cleaned_up,
        a_pin_that_is_not_ours_is_named_and_left_alone,
        a_new_agent_replaces_programs_in_the_links_of_the_old_one,
        links_of_devices_and_cgroups_that_are_gone_are_replaced,
        clsact_filters_are_replaced_in_place_and_cleaned_up,
        what_devices_were_to_a_former_agent_is_known_from_its_links_and_filters,
        a_second_agent_is_refused_and_the_first_is_named,
    ));
    tests.extend(sandboxed!(
        maps: what_is_written_is_what_exists,
        a_node_may_have_every_cluster_ip_itself,
        a_full_table_and_an_index_beyond_its_end_are_told_apart,
        tables_of_the_default_size_are_read_in_well_under_a_second,
    ));
    tests.extend(sandboxed!(monitoring: every_query_of_alerts_and_dashboard_asks_for_what_an_agent_shows));
    tests.extend(sandboxed!(
        network: pods_addresses_and_routes_are_followed_as_they_come_and_go,
        named_devices_are_uplinks_as_soon_as_they_are_there_and_missing_until_then,
        the_range_of_local_ports_is_that_of_the_namespace,
    ));
    tests.extend(sandboxed!(recount: flows_of_sockets_that_cannot_be_counted_are_forgotten_little_by_little));
    tests.extend(sandboxed!(
        xdp: a_new_agent_takes_the_link_over_and_another_mode_replaces_it,
        cleanup_removes_xdp_and_so_does_a_device_that_is_no_uplink_any_more,
        a_program_of_somebody_elses_is_named_and_left_alone,
        a_device_without_xdp_and_one_that_is_no_place_for_it_are_left_to_tc,
        the_agent_attaches_as_its_flag_says_and_status_gives_the_reason,
    ));
    trial::main(tests)
}
