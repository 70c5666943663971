//! Accounts on a node without doors: what each call answers and what it leaves in the database.

use std::net::{IpAddr, Ipv4Addr};

use super::{acquire_code, register, testing::*};
use crate::{
    address::DeviceAddress,
    caller::Caller,
    error::Result,
    node::testing::Bench,
    proto::{
        skiserver::AcquireAuthCodeRequest,
        skissm::{RegisterUserRequest, RegisterUserResponse, proto_msg::Payload},
    },
    signing::sha256,
    store::Append,
};

mod codes;
mod device;
mod federated;
mod login;
mod register_more;
mod register_new;
