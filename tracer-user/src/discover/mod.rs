//! Stage 1: processes, their interpreters, and where things lie inside an interpreter.
//!
//! Pure readers over roots that tests can fake. It must not know probe points, kernels or the account.
mod environment;
mod files;
pub mod layout;
mod mallocs;
pub mod memory;
pub mod target;

pub use environment::started_with;
pub use files::Files;
pub use mallocs::{MallocFile, MallocSearch};
pub use target::{DiscoverError, Interpreter, MappedFile, Target};
