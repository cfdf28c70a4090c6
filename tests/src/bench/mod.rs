//! What `lb-bench` measures: each module one kind of number, [`report`] how they are shown.

pub mod agent;
pub mod connect;
pub mod document;
pub mod program_time;
pub mod report;
pub mod rivals;
pub mod tiny;
