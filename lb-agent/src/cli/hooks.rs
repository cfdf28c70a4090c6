//! What is attached where.

use anyhow::Result;
use lb_agent::loader::{self, Attached, Pins};

/// A place where one of our programs is attached.
pub(super) struct Hook {
    pub(super) attached: Attached,
    /// Name of the program; `None` where it is of an agent that did not come to its end.
    pub(super) program: Option<&'static str>,
    pub(super) program_id: u32,
}

/// Every such place: links, and before Linux 6.6 filters of clsact.
pub(super) fn attached(pins: &Pins) -> Result<Vec<Hook>> {
    let programs = loader::pinned_programs(pins);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let filters = runtime.block_on(loader::clsact_filters())?;
    let filters = filters.into_iter().map(|(direction, index, program)| (Attached::Device(direction, index), program));
    let links = loader::attached(pins)?.into_iter().map(|(_, attached, program)| (attached, program));
    let hook = |(attached, program_id): (Attached, u32)| Hook {
        attached,
        program: programs.get(&program_id).copied(),
        program_id,
    };
    Ok(links.chain(filters).map(hook).collect())
}

/// The name of a device.
pub(super) fn device(index: u32) -> String {
    let name = nix::net::if_::if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    // nix takes the null that says that there is none for a name.
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| format!("<device {index}?>"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_gone_shows_as_dangling() {
        assert_eq!(device(1), "lo");
        assert_eq!(device(0x7fff_fff0), "<device 2147483632?>");
    }
}
