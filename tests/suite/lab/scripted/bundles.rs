//! People of a scripted peer: their bundles, good ones to be spoiled by the test.

use skiserver::{
    address::DeviceAddress,
    client::{Keys, Pack},
    proto::skissm::{GetPreKeyBundleResponse, PreKeyBundle, ResponseCode},
};

use super::Scripted;

/// A device that exists in the script only.
pub(crate) struct Target {
    /// Its address.
    pub(crate) address: DeviceAddress,
    keys: Keys,
}

impl Scripted {
    /// A device of the peer's domain.
    pub(crate) fn target(&self, user_id: &str, device_id: &str) -> Target {
        let address = format!("{user_id}@{}/{device_id}", self.domain);
        Target {
            address: DeviceAddress::parse(&address).unwrap(),
            keys: Keys::generate(Pack::SMALL).unwrap(),
        }
    }
}

impl Target {
    /// A good bundle with a fresh one-time key. The peer's signature is missing: nobody needs it.
    pub(crate) fn bundle(&self) -> PreKeyBundle {
        PreKeyBundle {
            user_address: Some(self.address.to_proto()),
            e2ee_pack_id: self.keys.pack().id,
            identity_key_public: Some(self.keys.identity().clone()),
            signed_pre_key_public: Some(self.keys.signed_pre_key(1)),
            one_time_pre_key_public: self.keys.opks(1).pop(),
            signature: None,
        }
    }

    /// The answer with these bundles.
    pub(crate) fn answer(&self, bundles: Vec<PreKeyBundle>) -> GetPreKeyBundleResponse {
        GetPreKeyBundleResponse {
            code: ResponseCode::Ok.into(),
            msg: String::new(),
            user_id: self.address.user.user_id.clone(),
            pre_key_bundles: bundles,
        }
    }
}
