//! What Intel's VF families (82576, I350; 82599, X540, X550) have in common: descriptors and the mailbox.

pub mod descriptor;
pub mod mailbox;
