//! States of the maps that no agent leaves behind, for rows about an agent that is late or wrong.

use anyhow::Result;
use aya::{
    Pod,
    maps::{Array, HashMap},
};
use lb_common::abi::{Backend, Frontend, FrontendKey, maps};

use super::Dataplane;

impl Dataplane {
    /// Gives every backend the generation of those that are not in use.
    pub fn invalidate_backends(&mut self) -> Result<()> {
        self.invalidate::<[u8; 4]>(maps::BACKENDS4)?;
        self.invalidate::<[u8; 16]>(maps::BACKENDS6)
    }

    fn invalidate<A>(&mut self, map: &str) -> Result<()>
    where
        Backend<A>: Pod,
    {
        let mut backends: Array<_, Backend<A>> = self.map(map).try_into()?;
        // The rows have a handful of backends, and indices are given out from the lowest on.
        for index in 0..64 {
            let backend = backends.get(&index, 0)?;
            backends.set(index, &Backend { generation: 0, ..backend }, 0)?;
        }
        Ok(())
    }

    /// Makes the value of every frontend one that was written for another.
    pub fn disown_frontends(&mut self) -> Result<()> {
        self.disown::<[u8; 4]>(maps::FRONTENDS4)?;
        self.disown::<[u8; 16]>(maps::FRONTENDS6)
    }

    fn disown<A>(&mut self, map: &str) -> Result<()>
    where
        FrontendKey<A>: Pod,
    {
        let mut frontends: HashMap<_, FrontendKey<A>, Frontend> = self.map(map).try_into()?;
        let all = frontends.iter().collect::<Result<Vec<_>, _>>()?;
        for (key, value) in all {
            frontends.insert(&key, &Frontend { owner: !value.owner, ..value }, 0)?;
        }
        Ok(())
    }
}
