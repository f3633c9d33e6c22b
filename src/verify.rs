//! `nearside verify`: drives a deployment, notes what everybody was told, and judges it.

pub mod history;
pub mod linearizable;
pub mod register;
