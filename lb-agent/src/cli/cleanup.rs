use anyhow::Result;
use lb_agent::{
    loader::{self, Pins},
    takeover,
};

pub(super) fn run(pins: &Pins) -> Result<()> {
    for path in loader::cleanup(pins)? {
        eprintln!("{}: not made by lb-agent, left alone", path.display());
    }
    takeover::remove_keepalive()?;
    Ok(())
}
