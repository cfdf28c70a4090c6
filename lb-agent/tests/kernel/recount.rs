//! Flows that are counted anew for `least-conn`, where something is missing.

use std::fs;

use lb_agent::{
    dataplane::{Loads, RecountError, Recounter},
    loader::{LoadOptions, Loaded, Pins},
};
use lb_common::abi::{Load, LoadKey, maps};

use crate::sandbox;

pub(crate) fn flows_of_sockets_that_cannot_be_counted_are_forgotten_little_by_little() {
    sandbox::run(|sandbox| {
        let pins = Pins::create(&sandbox.bpffs).unwrap_or_else(|error| panic!("{error}"));
        let options = LoadOptions { pins: Some(pins.clone()), ..LoadOptions::default() };
        drop(Loaded::load(&options).unwrap_or_else(|error| panic!("{error}")));
        let mut loads = Loads::open::<[u8; 4]>(|map| pins.open(map)).unwrap_or_else(|error| panic!("{error}"));
        let [busy, idle] = [1, 2].map(|backend| LoadKey { backend, generation: 7 });
        loads.set(&busy, Load { flows: 800 }).expect("written");
        loads.set(&idle, Load { flows: 1 }).expect("written");
        let mut recounter = Recounter::of_pins(&pins).unwrap_or_else(|error| panic!("{error}"));

        // The program is not loaded where a map of the data plane is missing.
        let gone = pins.map(maps::XDP_DEVICES);
        let aside = sandbox.bpffs.join("aside");
        fs::rename(&gone, &aside).expect("renamed");
        let error = recounter.recount().expect_err("there are no sockets to count");
        assert!(matches!(error, RecountError::Program(_)), "{error}");
        assert_eq!(loads.read().expect("read"), [(busy, Load { flows: 700 })]);

        // What can be counted again is what it is.
        fs::rename(&aside, &gone).expect("renamed");
        assert_eq!(recounter.recount().expect("it can be loaded").flows, 0);
        assert_eq!(loads.read().expect("read"), []);
    });
}
