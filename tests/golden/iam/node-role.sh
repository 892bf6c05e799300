#!/bin/sh
set -eu

# edge: ServiceAccount channels/eu-edge
# The role of the nodes on which it runs stands in place of NODE_ROLE.
aws iam put-role-policy --role-name NODE_ROLE --policy-name realtime-channels-eu-edge-access --policy-document '{"Version":"2012-10-17","Statement":[{"Sid":"Stream","Effect":"Allow","Action":["kinesis:DescribeStreamSummary","kinesis:PutRecords"],"Resource":"arn:aws:kinesis:eu-west-1:123456789012:stream/rtc-channels-eu-*"}]}'

# dispatcher: ServiceAccount channels/eu-dispatcher
# The role of the nodes on which it runs stands in place of NODE_ROLE.
aws iam put-role-policy --role-name NODE_ROLE --policy-name realtime-channels-eu-dispatcher-access --policy-document '{"Version":"2012-10-17","Statement":[{"Sid":"Stream","Effect":"Allow","Action":["kinesis:DescribeStreamSummary","kinesis:GetRecords","kinesis:GetShardIterator","kinesis:ListShards"],"Resource":"arn:aws:kinesis:eu-west-1:123456789012:stream/rtc-channels-eu-*"}]}'

# operator: ServiceAccount realtime-operator/realtime-operator
# The role of the nodes on which it runs stands in place of NODE_ROLE.
aws iam put-role-policy --role-name NODE_ROLE --policy-name realtime-channels-eu-operator-access --policy-document '{"Version":"2012-10-17","Statement":[{"Sid":"Stream","Effect":"Allow","Action":["kinesis:AddTagsToStream","kinesis:CreateStream","kinesis:DescribeStreamSummary","kinesis:GetRecords","kinesis:GetShardIterator","kinesis:IncreaseStreamRetentionPeriod","kinesis:ListShards","kinesis:ListTagsForStream","kinesis:RemoveTagsFromStream","kinesis:StartStreamEncryption","kinesis:UpdateShardCount","kinesis:UpdateStreamMode"],"Resource":"arn:aws:kinesis:eu-west-1:123456789012:stream/rtc-channels-eu-*"}]}'
