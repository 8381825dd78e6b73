//! What Intel's VF families (82576, I350; 82599, X540, X550) have in common: descriptors, rings, the mailbox and its messages.
//! In what their rings differ is a [`Family`]. Of that, [`reports`] and [`tag`] serve [`iavf`](crate::iavf), too.

pub mod agreement;
pub mod context;
pub mod counter;
pub mod descriptor;
pub mod family;
pub mod groups;
pub mod mailbox;
pub mod message;
pub mod pair;
pub mod reports;
pub mod rx;
pub mod tag;
pub mod tx;

pub use family::Family;
pub use rx::IntelReceive;
pub use tx::IntelTransmit;
