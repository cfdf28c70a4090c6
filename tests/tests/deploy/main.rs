//! What `deploy` holds: that chart and kustomize base render the same objects, that the API server takes them, and that
//! the rights that they give an agent are those that it uses.

mod accepted;
mod chart;
mod installed;
mod memory;
mod pod;
mod render;
mod rights;
mod variants;

use std::process::ExitCode;

use lb_tests::{
    sandboxed,
    trial::{self, Body, Test},
};

/// The tests of a file that need no sandbox: they only read files.
macro_rules! outside {
    ($module:ident: $($name:ident),+ $(,)?) => {
        [$(Test { name: concat!(stringify!($module), "::", stringify!($name)), body: Body::Outside($module::$name) }),+]
    };
}

fn main() -> ExitCode {
    let mut tests = Vec::new();
    // The longest first, so that the others run beside it.
    tests.extend(sandboxed!(
        rights: an_agent_uses_all_of_its_rights_and_misses_each_that_is_taken_away,
        an_agent_that_is_sent_lists_by_a_watch_does_with_less,
    ));
    tests.extend(sandboxed!(
        accepted: the_api_server_takes_all_objects_and_knows_all_their_fields,
        an_unknown_field_is_refused,
    ));
    tests.extend(sandboxed!(memory: the_memory_that_a_pod_asks_for_is_what_an_agent_uses));
    tests.extend(outside!(variants: chart_and_kustomize_render_the_same_objects));
    tests.extend(outside!(
        pod: the_agent_has_three_capabilities_and_nothing_else_of_root,
        the_agent_is_on_every_node_and_its_update_leaves_none_without_data_plane,
        the_image_is_the_one_that_xtask_makes,
        the_configuration_is_one_that_the_agent_takes,
    ));
    tests.extend(outside!(
        chart: it_asks_how_the_api_server_is_reached,
        its_schema_refuses_what_cannot_work,
        the_configuration_of_kubeadm_is_taken_as_it_is,
        what_kubeconfig_and_configuration_are_given_reaches_the_pod,
    ));
    trial::main(tests)
}
