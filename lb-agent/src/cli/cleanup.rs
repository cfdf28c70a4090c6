use anyhow::Result;
use lb_agent::{
    loader::{self, Pins},
    takeover,
};

pub(super) fn run(pins: &Pins) -> Result<()> {
    if pins.versions()?.is_empty() {
        let ours = pins.root().parent().unwrap_or(pins.root()).display();
        eprintln!("nothing of lb-agent's in {ours}: the agent has not run on this node, or ran with another --bpffs");
    }
    for path in loader::cleanup(pins)? {
        eprintln!("{}: not made by lb-agent, left alone", path.display());
    }
    takeover::remove_keepalive()?;
    Ok(())
}
