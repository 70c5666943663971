//! The compiled wire contract and the tables under `tests/tables` say the same, both ways. The comparison itself is
//! checked with descriptors that were changed on purpose.

mod lines;

use prost::Message as _;
use prost_types::{
    DescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto, FileDescriptorProto,
    FileDescriptorSet, MethodDescriptorProto,
    field_descriptor_proto::{Label, Type},
};
use skiserver::proto::DESCRIPTORS;

use lines::{compare, of_descriptors, of_tables, private_types};

const SERVICES: &str = include_str!("../tables/services.tsv");
const TYPES: [&str; 3] = [
    include_str!("../tables/skiserver.tsv"),
    include_str!("../tables/skissm.tsv"),
    include_str!("../tables/ski.tsv"),
];

/// What the client library stores or encrypts, and what no method uses.
const PRIVATE: [&str; 24] = [
    "skissm.Account",
    "skissm.ChainKey",
    "skissm.E2eePackId",
    "skissm.GroupPreKeyBundle",
    "skissm.GroupSession",
    "skissm.GroupUpdateKeyBundle",
    "skissm.IdentityKey",
    "skissm.KemAlgType",
    "skissm.KeyPair",
    "skissm.MsgKey",
    "skissm.OneTimePreKey",
    "skissm.PendingRequest",
    "skissm.PendingRequestType",
    "skissm.Plaintext",
    "skissm.Ratchet",
    "skissm.ReceiverChainNode",
    "skissm.SenderChainNode",
    "skissm.Session",
    "skissm.SignedPreKey",
    "skissm.SkippedMsgKeyNode",
    "skissm.SymKeyAlgType",
    "skissm.UpdateUserRequest",
    "skissm.UpdateUserResponse",
    "skissm.UserDevicesBundle",
];

fn compiled() -> FileDescriptorSet {
    FileDescriptorSet::decode(DESCRIPTORS).expect("build.rs writes a descriptor set")
}

/// What the comparison says after `change`.
fn after(change: impl FnOnce(&mut FileDescriptorSet)) -> Vec<String> {
    let mut set = compiled();
    change(&mut set);
    compare(&of_descriptors(&set), &of_tables(SERVICES, &TYPES))
}

fn file<'a>(set: &'a mut FileDescriptorSet, name: &str) -> &'a mut FileDescriptorProto {
    set.file
        .iter_mut()
        .find(|file| file.name() == name)
        .unwrap()
}

fn message<'a>(
    set: &'a mut FileDescriptorSet,
    file_name: &str,
    name: &str,
) -> &'a mut DescriptorProto {
    let messages = &mut file(set, file_name).message_type;
    messages
        .iter_mut()
        .find(|message| message.name() == name)
        .unwrap()
}

fn field<'a>(message: &'a mut DescriptorProto, name: &str) -> &'a mut FieldDescriptorProto {
    message
        .field
        .iter_mut()
        .find(|field| field.name() == name)
        .unwrap()
}

fn method<'a>(
    set: &'a mut FileDescriptorSet,
    service: &str,
    name: &str,
) -> &'a mut MethodDescriptorProto {
    let services = &mut file(set, &format!("skiserver/{service}.proto")).service;
    let methods = services.iter_mut().flat_map(|service| &mut service.method);
    methods
        .into_iter()
        .find(|method| method.name() == name)
        .unwrap()
}

#[test]
fn the_compiled_contract_is_that_of_the_tables() {
    let differences = after(|_| {});

    assert_eq!(differences, Vec::<String>::new());
}

#[test]
fn every_file_is_proto3() {
    let others: Vec<String> = compiled()
        .file
        .iter()
        .filter(|file| file.syntax() != "proto3")
        .map(|file| file.name().to_owned())
        .collect();

    assert_eq!(others, Vec::<String>::new());
}

#[test]
fn the_tables_hold_four_services_with_59_methods() {
    let lines = of_tables(SERVICES, &TYPES);
    let count = |kind: &str| lines.iter().filter(|line| line.starts_with(kind)).count();

    assert_eq!((count("service "), count("method ")), (4, 59));
}

#[test]
fn what_clients_keep_for_themselves_is_not_compiled() {
    let private = private_types(SERVICES, &TYPES);
    let compiled = of_descriptors(&compiled());

    let is_compiled = |name: &String| {
        let is_it = |line: &String| line.split(' ').nth(1) == Some(name);
        compiled.iter().any(is_it)
    };
    let leaked: Vec<&String> = private.iter().filter(|name| is_compiled(name)).collect();
    assert_eq!(leaked, Vec::<&String>::new());
    assert_eq!(private, PRIVATE);
}

#[test]
fn a_renumbered_field_is_two_differences() {
    let differences = after(|set| {
        field(
            message(set, "skissm/InviteMsg.proto", "InviteMsg"),
            "invite_t",
        )
        .number = Some(12);
    });

    assert_eq!(
        differences,
        [
            "only compiled: field skissm.InviteMsg.invite_t = 12, type int64, label '', oneof '' (skissm/InviteMsg.proto)",
            "only in the tables: field skissm.InviteMsg.invite_t = 11, type int64, label '', oneof '' (skissm/InviteMsg.proto)",
        ]
    );
}

#[test]
fn a_field_of_another_type_label_or_oneof_is_seen() {
    let differences = after(|set| {
        field(
            message(set, "skissm/LeaveGroupMsg.proto", "LeaveGroupMsg"),
            "user_address",
        )
        .type_name = Some(".skissm.GroupMember".to_owned());
        field(
            message(set, "skiserver/LoginRequest.proto", "LoginRequest"),
            "password",
        )
        .set_type(Type::Bytes);
        field(
            message(set, "skissm/InviteResponse.proto", "InviteResponse"),
            "session_id",
        )
        .set_label(Label::Repeated);
        field(message(set, "skissm/E2eeMsg.proto", "E2eeMsg"), "group_msg").oneof_index = None;
    });

    assert_eq!(
        differences,
        [
            "only compiled: field skiserver.LoginRequest.password = 2, type bytes, label '', oneof '' (skiserver/LoginRequest.proto)",
            "only compiled: field skissm.E2eeMsg.group_msg = 12, type skissm.GroupMsgPayload, label '', oneof '' (skissm/E2eeMsg.proto)",
            "only compiled: field skissm.InviteResponse.session_id = 3, type string, label 'repeated', oneof '' (skissm/InviteResponse.proto)",
            "only compiled: field skissm.LeaveGroupMsg.user_address = 1, type skissm.GroupMember, label '', oneof '' (skissm/LeaveGroupMsg.proto)",
            "only in the tables: field skiserver.LoginRequest.password = 2, type string, label '', oneof '' (skiserver/LoginRequest.proto)",
            "only in the tables: field skissm.E2eeMsg.group_msg = 12, type skissm.GroupMsgPayload, label '', oneof 'payload' (skissm/E2eeMsg.proto)",
            "only in the tables: field skissm.InviteResponse.session_id = 3, type string, label '', oneof '' (skissm/InviteResponse.proto)",
            "only in the tables: field skissm.LeaveGroupMsg.user_address = 1, type skissm.E2eeAddress, label '', oneof '' (skissm/LeaveGroupMsg.proto)",
        ]
    );
}

#[test]
fn an_extra_and_a_missing_field_are_seen() {
    let differences = after(|set| {
        message(set, "skissm/AcceptMsg.proto", "AcceptMsg")
            .field
            .retain(|field| field.name() != "ratchet_key");
        let mut extra = field(
            message(set, "skissm/InviteMsg.proto", "InviteMsg"),
            "invite_t",
        )
        .clone();
        extra.name = Some("spare".to_owned());
        extra.number = Some(99);
        message(set, "skissm/InviteMsg.proto", "InviteMsg")
            .field
            .push(extra);
    });

    assert_eq!(
        differences,
        [
            "only compiled: field skissm.InviteMsg.spare = 99, type int64, label '', oneof '' (skissm/InviteMsg.proto)",
            "only in the tables: field skissm.AcceptMsg.ratchet_key = 5, type bytes, label '', oneof '' (skissm/AcceptMsg.proto)",
        ]
    );
}

#[test]
fn a_missing_method_a_lost_stream_and_another_request_are_seen() {
    let differences = after(|set| {
        file(set, "skiserver/E2eeS2SService.proto").service[0]
            .method
            .retain(|method| method.name() != "SubmitProtoMsg");
        method(set, "E2eeBidiService", "Communicate").client_streaming = Some(false);
        method(set, "E2eeUnaryService", "Logout").input_type =
            Some(".skiserver.LoginRequest".to_owned());
    });

    assert_eq!(
        differences,
        [
            "only compiled: method skiserver.E2eeBidiService/Communicate: skissm.ProtoMsg -> stream skissm.ProtoMsg",
            "only compiled: method skiserver.E2eeUnaryService/Logout: skiserver.LoginRequest -> skiserver.LogoutResponse",
            "only in the tables: method skiserver.E2eeBidiService/Communicate: stream skissm.ProtoMsg -> stream skissm.ProtoMsg",
            "only in the tables: method skiserver.E2eeS2SService/SubmitProtoMsg: skiserver.SubmitProtoMsgRequest -> skiserver.SubmitProtoMsgResponse",
            "only in the tables: method skiserver.E2eeUnaryService/Logout: skiserver.LogoutRequest -> skiserver.LogoutResponse",
        ]
    );
}

#[test]
fn enum_values_are_compared_both_ways() {
    let differences = after(|set| {
        file(set, "ski/UserState.proto").enum_type[0].value[2].number = Some(3);
        file(set, "ski/BlockState.proto").enum_type[0]
            .value
            .push(EnumValueDescriptorProto {
                name: Some("BLOCK_STATE_MUTED".to_owned()),
                number: Some(2),
                options: None,
            });
        set.file
            .retain(|file| file.name() != "ski/FriendStatus.proto");
    });

    assert_eq!(
        differences,
        [
            "only compiled: enum value ski.BlockState.BLOCK_STATE_MUTED = 2 (ski/BlockState.proto)",
            "only compiled: enum value ski.UserState.USER_STATE_DELETED = 3 (ski/UserState.proto)",
            "only in the tables: enum ski.FriendStatus (ski/FriendStatus.proto)",
            "only in the tables: enum value ski.FriendStatus.FRIEND_STATUS_ATTENTION = 1 (ski/FriendStatus.proto)",
            "only in the tables: enum value ski.FriendStatus.FRIEND_STATUS_FRIEND = 2 (ski/FriendStatus.proto)",
            "only in the tables: enum value ski.FriendStatus.FRIEND_STATUS_NONE = 0 (ski/FriendStatus.proto)",
            "only in the tables: enum value ski.UserState.USER_STATE_DELETED = 2 (ski/UserState.proto)",
        ]
    );
}

#[test]
fn a_private_message_of_clients_and_a_moved_one_are_seen() {
    let differences = after(|set| {
        file(set, "skissm/LeaveGroupMsg.proto")
            .message_type
            .push(DescriptorProto {
                name: Some("Account".to_owned()),
                ..DescriptorProto::default()
            });
        file(set, "skissm/RemoveUserDeviceMsg.proto").name =
            Some("skissm/Devices.proto".to_owned());
    });

    assert_eq!(
        differences,
        [
            "only compiled: field skissm.RemoveUserDeviceMsg.user_address = 1, type skissm.E2eeAddress, label '', oneof '' (skissm/Devices.proto)",
            "only compiled: message skissm.Account (skissm/LeaveGroupMsg.proto)",
            "only compiled: message skissm.RemoveUserDeviceMsg (skissm/Devices.proto)",
            "only in the tables: field skissm.RemoveUserDeviceMsg.user_address = 1, type skissm.E2eeAddress, label '', oneof '' (skissm/RemoveUserDeviceMsg.proto)",
            "only in the tables: message skissm.RemoveUserDeviceMsg (skissm/RemoveUserDeviceMsg.proto)",
        ]
    );
}
